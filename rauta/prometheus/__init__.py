"""Figures as Prometheus reads them."""
