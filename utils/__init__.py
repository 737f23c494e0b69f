"""What doors need beside the rooms: configuration, checkpoints, metrics, processes, schedules, pictures, reports."""
