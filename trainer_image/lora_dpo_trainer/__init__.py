"""The trainer: LoRA-DPO on JAX, haliax and Levanter, in three phases: prepare, train, export."""
