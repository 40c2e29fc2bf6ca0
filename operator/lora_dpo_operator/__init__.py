"""The operator: reconciles LoraDpoJobs into Jobs and JobSets, and tells how they go."""
