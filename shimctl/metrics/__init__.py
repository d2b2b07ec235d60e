"""Figures of containers and shims for Prometheus.

``collect`` measures, ``families`` names the metrics, ``exposition`` writes and serves
them.  The last two need prometheus_client.
"""
