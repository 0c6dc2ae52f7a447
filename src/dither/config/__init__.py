"""The options of every command, typed and frozen, shared by command line and Python API."""

from dither.config.audit import (
    AuditAllreduceConfig,
    AuditInversionConfig,
    AuditLedgerConfig,
    AuditMembershipConfig,
    AuditMutantsConfig,
    AuditRunConfig,
)
from dither.config.commands import (
    BenchConfig,
    DataBuildConfig,
    DataDescribeConfig,
    DataFetchConfig,
    DataReportConfig,
    DataStatisticsConfig,
    DataSynthConfig,
    DoctorConfig,
    LedgerConfig,
    PlanConfig,
    ReportConfig,
)
from dither.config.options import RUNNING
from dither.config.train import PLACES, TrainConfig

__all__ = [
    "PLACES",
    "RUNNING",
    "AuditAllreduceConfig",
    "AuditInversionConfig",
    "AuditLedgerConfig",
    "AuditMembershipConfig",
    "AuditMutantsConfig",
    "AuditRunConfig",
    "BenchConfig",
    "DataBuildConfig",
    "DataDescribeConfig",
    "DataFetchConfig",
    "DataReportConfig",
    "DataStatisticsConfig",
    "DataSynthConfig",
    "DoctorConfig",
    "LedgerConfig",
    "PlanConfig",
    "ReportConfig",
    "TrainConfig",
]
