"""Where a panel turns yellow or red: the thresholds of the alerts, each under the alert's name.

`tests/unit/test_dashboards.py` looks each of them up in the alert's own expression (`monitoring/prometheus/rules`).
"""

LIMITS = {
    "HydramixDiscriminatorSaturated": 0.98,
    "HydramixMixesCollapsing": 0.1,
    "HydramixOverfittingGap": 0.85,
    "HydramixCheckpointTooOld": 2.0,
    "HydramixStoreRetries": 0.1,
    "HydramixStoreAway": 0.8,
    "HydramixDataStalls": 0.25,
    "HydramixStraggler": 1.5,
    "HydramixTrialsFailing": 0.2,
    "HydramixDiskNearlyFull": 0.1,
    "HydramixClockSkew": 30.0,
}
