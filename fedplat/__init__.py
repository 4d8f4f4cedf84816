"""fedplat: federated training across institutions that may not share data."""

__version__ = "0.1.0"
