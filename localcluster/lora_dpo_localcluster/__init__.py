"""Starts a real Kubernetes cluster on this machine: kind where Docker is, built from source elsewhere."""
