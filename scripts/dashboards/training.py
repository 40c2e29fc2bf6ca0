"""The dashboard Training: how one or several runs go, and how they compare."""

from __future__ import annotations

import math

from scripts.dashboards.board import Board, Mark, Panel, Query, Row, Variable, View

LN_2 = round(math.log(2), 3)
RUN = "{{namespace}}/{{name}}"
_JOBS = 'namespace=~"$namespace", name=~"$job"'


def _train(metric: str, labels: str = "") -> str:
    """A metric of rank 0, one series a job: a restarted slice has another pod, and is the same run."""
    return f"max by (namespace, name) (loradpo_train_{metric}{{{_JOBS}{labels}}})"


def _job(metric: str, labels: str = "") -> str:
    """A metric that the operator has of each job."""
    return f"loradpo_operator_job_{metric}{{{_JOBS}{labels}}}"


def _by_job(metric: str) -> str:
    """The same, with no labels but the job's."""
    return f"max by (namespace, name) ({_job(metric)})"


_LOSS = Panel(
    title="Loss",
    description="DPO loss of each step. It starts at ln 2 = 0.693, where policy and reference agree. Below 0.2 within "
    "few steps: the adapter overfits, lower the rank. Rising above 0.693: lower the learning rate.",
    unit="none",
    decimals=3,
    queries=(Query(_train("dpo_loss"), RUN),),
    thresholds=((LN_2, "orange"),),
)
_REWARD_MARGIN = Panel(
    title="Reward margin",
    description="Reward of chosen answers minus that of rejected ones. It grows from 0. Flat after 100 steps: raise "
    "the learning rate or the rank. Below 0: the model learns the opposite.",
    unit="none",
    decimals=3,
    queries=(Query(_train("reward_margin"), RUN),),
    base="red",
    thresholds=((0, "green"),),
)
_ACCURACY = Panel(
    title="Accuracy",
    description="Share of pairs whose policy margin is above their reference margin. 50 % is chance.",
    unit="percentunit",
    low=0,
    high=1,
    queries=(Query(_train("dpo_accuracy"), RUN),),
    base="red",
    thresholds=((0.5, "orange"), (0.6, "green")),
)
_MARGINS = Panel(
    title="Policy and reference margins",
    description="Log-probability of the chosen answer minus that of the rejected one, in nats: of the policy, and of "
    "the base without adapter. Their distance is what training gained.",
    unit="none",
    queries=(
        Query(_train("dpo_margin_policy"), f"policy {RUN}"),
        Query(_train("dpo_margin_ref"), f"reference {RUN}"),
    ),
    base="blue",
    thresholds=((0, "green"),),
)
_REWARDS = Panel(
    title="Rewards",
    description="Implicit rewards: beta times the log-probability that the policy gained over the reference. Both "
    "falling far below 0 means that the policy forgets the answers altogether.",
    unit="none",
    queries=(
        Query(_train("dpo_chosen_reward"), f"chosen {RUN}"),
        Query(_train("dpo_rejected_reward"), f"rejected {RUN}"),
    ),
    base="blue",
    thresholds=((0, "green"),),
)
_EVAL_LOSS = Panel(
    title="Evaluation: loss",
    description="DPO loss on the held-out pairs. Rising while the training loss falls: the adapter overfits.",
    unit="none",
    decimals=3,
    queries=(Query(_train("eval_dpo_loss"), RUN),),
    thresholds=((LN_2, "orange"),),
)
_EVAL_ACCURACY = Panel(
    title="Evaluation: accuracy",
    description="Accuracy on the held-out pairs.",
    unit="percentunit",
    low=0,
    high=1,
    queries=(Query(_train("eval_dpo_accuracy"), RUN),),
    base="red",
    thresholds=((0.5, "orange"), (0.6, "green")),
)
_LEARNING_RATE = Panel(
    title="Learning rate",
    description="Of the last step. 5e-6 is where to start; above 5e-5 DPO diverges.",
    unit="sci",
    queries=(Query(_train("learning_rate"), RUN),),
    thresholds=((5e-5, "red"),),
)
_GRADIENT = Panel(
    title="Gradient norm",
    description="Global norm of the adapter's gradient before clipping; above 1 the default maxGradNorm clips it.",
    unit="none",
    queries=(Query(_train("grad_norm"), RUN),),
    thresholds=((1, "orange"),),
)
_PROGRESS = Panel(
    title="Progress",
    description="Share of all steps that are done.",
    unit="percentunit",
    low=0,
    high=1,
    queries=(Query(f"{_train('step')} / {_train('total_steps')}", RUN),),
    base="blue",
    thresholds=((1, "green"),),
)
_TOKENS = Panel(
    title="Tokens per second",
    description="Real tokens over all devices, shared prompts counted once, padding not at all. A drop without a new "
    "shape of the slice points to the bucket or to a slow host.",
    unit="short",
    low=0,
    queries=(Query(_train("tokens_per_second"), RUN),),
    base="red",
    thresholds=((1, "green"),),
)
_PAIRS = Panel(
    title="Pairs per second",
    description="Preference pairs over all devices.",
    unit="short",
    low=0,
    queries=(Query(_train("pairs_per_second"), RUN),),
    base="red",
    thresholds=((0.001, "green"),),
)
_STEP_TIME = Panel(
    title="Time per step",
    description="Of the last step, from the completion of the one before; how much of it waited for rows of the data; "
    "and for how long the last checkpoint held training back.",
    unit="s",
    low=0,
    queries=(
        Query(_train("step_seconds"), f"step {RUN}"),
        Query(_train("data_seconds"), f"data {RUN}"),
        Query(_train("save_seconds"), f"checkpoint {RUN}"),
    ),
    thresholds=((60, "orange"), (300, "red")),
)
_MFU = Panel(
    title="MFU",
    description="Necessary FLOPs of LoRA-DPO over what the chips' bfloat16 peak would do in that time. Absent on CPU.",
    unit="percentunit",
    low=0,
    high=1,
    queries=(Query(_train("mfu"), RUN),),
    base="red",
    thresholds=((0.1, "orange"), (0.3, "green")),
)
_PADDING = Panel(
    title="Pad fraction",
    description="Part of the step's token positions that hold no token: work for nothing. Packing keeps it at a few "
    "percent unless the pairs are few or much longer than the rest.",
    unit="percentunit",
    low=0,
    queries=(Query(_train("pad_fraction"), RUN),),
    thresholds=((0.1, "orange"), (0.3, "red")),
)
_QUANTILES = Panel(
    title="Reward margin over a step's pairs",
    description="Margins that 10, 50 and 90 % of the step's pairs stay below. A 10 % line far below 0 while the mean "
    "grows: a part of the pairs is learnt the wrong way round; look for exchanged columns.",
    unit="none",
    queries=(
        Query(_train("reward_margin_p10"), f"10 % {RUN}"),
        Query(_train("reward_margin_p50"), f"50 % {RUN}"),
        Query(_train("reward_margin_p90"), f"90 % {RUN}"),
    ),
    base="red",
    thresholds=((0, "green"),),
)
_LOGPS = Panel(
    title="Log-probabilities",
    description="Of the answers under the policy, in nats, summed over each answer. Both falling fast: the policy "
    "forgets the data's answers; lower the learning rate or raise beta.",
    unit="none",
    queries=(
        Query(_train("logps_chosen"), f"chosen {RUN}"),
        Query(_train("logps_rejected"), f"rejected {RUN}"),
    ),
    base="blue",
    thresholds=((0, "red"),),
)
_KL = Panel(
    title="Drift from the reference",
    description="Mean log ratio of reference to policy on the data's answers, in nats an answer: 0 at the start. It "
    "estimates the divergence, and is exact only for answers of the reference itself.",
    unit="none",
    queries=(Query(_train("kl"), RUN),),
    thresholds=((20, "orange"), (100, "red")),
)
_DEVICE_MEMORY = Panel(
    title="Device memory (HBM)",
    description="In use, and most ever in use, on the fullest device of the leading host. Absent where the device does "
    "not tell, as on CPU. A v5e or v6e chip has 16 and 32 GB, a v5p chip 95 GB.",
    unit="bytes",
    low=0,
    queries=(
        Query(_train("memory_device_bytes"), f"now {RUN}"),
        Query(_train("memory_device_peak_bytes"), f"peak {RUN}"),
        Query(_train("memory_device_limit_bytes"), f"limit {RUN}"),
    ),
    thresholds=((90e9, "orange"),),
)
_HOST_MEMORY = Panel(
    title="Host memory",
    description="Resident memory of the leading host's trainer process.",
    unit="bytes",
    low=0,
    queries=(Query(_train("memory_rss_bytes"), RUN),),
    thresholds=((300e9, "orange"),),
)
_CHECKPOINT = Panel(
    title="Checkpoint age",
    description="Age of the newest complete checkpoint: the work that a preemption now would lose. Above half an hour "
    "LoraDpoCheckpointStale fires.",
    unit="s",
    low=0,
    queries=(Query(f"time() - {_train('last_checkpoint_timestamp_seconds')}", RUN),),
    thresholds=((600, "orange"), (1800, "red")),
)
_RESTARTS = Panel(
    title="Restarts",
    description="Of the slice: after crashes, which count towards runPolicy.maxRestarts, and after preemptions, which "
    "do not.",
    unit="none",
    decimals=0,
    low=0,
    queries=(
        Query(_by_job("restarts"), f"crashes {RUN}"),
        Query(_by_job("preemptions"), f"preemptions {RUN}"),
    ),
    thresholds=((1, "orange"), (3, "red")),
)
_STATE = Panel(
    title="What the trainer does",
    description="Loading, Reference, Compiling, Training, Evaluating or Saving, as rank 0 says.",
    unit="bool",
    view=View.STATES,
    width=12,
    queries=(
        Query(
            f"max by (namespace, name, state) (loradpo_train_state{{{_JOBS}}}) == 1",
            f"{RUN} {{{{state}}}}",
        ),
    ),
    base="transparent",
    thresholds=((1, "blue"),),
)
_PHASE = Panel(
    title="Phase",
    description="Pending, Preparing, Queued, Initializing, Running, Restarting, Suspended, Exporting, Succeeded or "
    "Failed, as the operator says.",
    unit="bool",
    view=View.STATES,
    width=12,
    queries=(Query(f"max by (namespace, name, phase) ({_job('phase')})", f"{RUN} {{{{phase}}}}"),),
    base="transparent",
    thresholds=((1, "blue"),),
)
_COMPARISON = Panel(
    title="Runs beside each other",
    description="Last values of each chosen job, as the operator has them; also of finished ones, for as long as the "
    "job exists.",
    unit="none",
    decimals=4,
    view=View.TABLE,
    width=24,
    queries=(
        Query(_by_job("step"), "step"),
        Query(_by_job("loss"), "loss"),
        Query(_by_job("reward_margin"), "reward margin"),
        Query(_by_job("accuracy"), "accuracy"),
        Query(_by_job("eval_loss"), "eval loss"),
        Query(_by_job("eval_accuracy"), "eval accuracy"),
        Query(_by_job("first_step_seconds"), "seconds to first step"),
        Query(_by_job("slice_held_seconds"), "seconds held"),
    ),
    base="text",
    thresholds=((0, "text"),),
)

BOARD = Board(
    uid="lora-dpo-training",
    title="LoRA-DPO / Training",
    description="Loss, margins, rewards, speed and safety of LoraDpoJobs. Choose several jobs to compare their runs.",
    variables=(
        Variable("namespace", "Namespace", "label_values(loradpo_operator_job_phase, namespace)"),
        Variable("job", "Job", 'label_values(loradpo_operator_job_phase{namespace=~"$namespace"}, name)'),
    ),
    marks=(
        Mark(
            "Restart",
            f"changes({_job('restarts')}[1m]) + changes({_job('preemptions')}[1m]) > 0",
            "red",
            RUN,
        ),
        Mark(
            "Checkpoint",
            f"changes(loradpo_train_last_checkpoint_timestamp_seconds{{{_JOBS}}}[1m]) > 0",
            "blue",
            RUN,
        ),
    ),
    rows=(
        Row("Preference", (_LOSS, _REWARD_MARGIN, _ACCURACY, _MARGINS, _REWARDS, _QUANTILES, _LOGPS, _KL)),
        Row("Held-out pairs", (_EVAL_LOSS, _EVAL_ACCURACY)),
        Row("Optimisation", (_LEARNING_RATE, _GRADIENT, _PROGRESS)),
        Row("Speed", (_TOKENS, _PAIRS, _STEP_TIME, _MFU, _PADDING)),
        Row("Memory", (_DEVICE_MEMORY, _HOST_MEMORY)),
        Row("Safety", (_CHECKPOINT, _RESTARTS)),
        Row("Course", (_PHASE, _STATE)),
        Row("Comparison", (_COMPARISON,)),
    ),
)
