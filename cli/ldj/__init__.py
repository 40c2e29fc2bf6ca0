"""ldj: the command line of the LoRA-DPO operator."""
