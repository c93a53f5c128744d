"""The kinds of jobs, one file each. A new kind is a new file and one name in ``KINDS``."""

from __future__ import annotations

from agent.job import Job
from agent.jobs.allocation_audit import AllocationAudit
from agent.jobs.client_eviction import ClientEviction
from agent.jobs.orphan_records import OrphanRecords
from agent.jobs.orphan_tasks import OrphanTasks
from agent.jobs.retention import Retention
from agent.jobs.stuck_tasks import StuckTasks

KINDS: tuple[type[Job], ...] = (OrphanRecords, OrphanTasks, StuckTasks, Retention, AllocationAudit, ClientEviction)
