"""Against running engines and gateways: one client, the replay of workloads, the probes of a calibration."""
