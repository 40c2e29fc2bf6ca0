module example.invalid/cluster

go 1.26.0

require (
	github.com/GoogleCloudPlatform/prometheus-engine v0.13.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
