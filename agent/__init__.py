"""The Maintenance Agent: keeps MongoDB records, directories on a volume and Kubernetes workloads in step."""
