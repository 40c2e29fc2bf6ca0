"""The chart's Grafana dashboards: `python -m scripts.dashboards` writes them anew."""
