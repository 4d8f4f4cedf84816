"""A run spec to start from, with every key explained: for the demo's data, or for the columns of a CSV file."""

from __future__ import annotations

import json
from pathlib import Path

from fedplat.errors import SpecError
from fedplat.spec.infer import Column, Table, infer_table, legal_name
from fedplat.spec.load import parse_spec


def write_template(task: str, csv: Path | None = None, *, target: str | None = None) -> str:
    """A commented spec as TOML text, which parses and runs.

    Without `csv`, `tabular` fits the demo's breast cancer data. With it, kinds and constants of the columns are
    guessed from the file (DataError if it cannot be used) and `target`, or the most likely column, is predicted.
    """
    if task == "tabular":
        table = infer_table(csv, target=target) if csv else None
        options = _options(_table_lines(table) if table else _demo_lines())
        name = table.name if table else "breast-cancer"
    elif csv is not None:
        raise SpecError(f"the task {task!r} has no columns to guess", hint="leave --data out, or use --task tabular")
    else:
        name, options = legal_name(task), "# What the task takes, as its own documentation says.\n[task.options]\n"
    text = _GENERAL.format(name=name) + f"[task]\nname = {toml_string(task)}\n\n{options}"
    parse_spec(text, source=f"the spec written for {csv or task}")
    return text


def toml_string(text: str) -> str:
    """`text` as a TOML basic string, also fit for a comment: JSON's escapes, and DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_GENERAL = """\
# A run spec. Whoever shows the same hash of it (fedplat run show) trains the same thing.
# Lines that start with "# key =" show what may be set as well, with the default or an example.

name = "{name}"
seed = 0  # first weights, order of batches, dropout: same seed, same model

[data]
name = "{name}"  # the silos' own name for the data: fedplat client join --data {name}=PATH
split = "hash"  # a keyed hash of patient or record picks the test set; "given": train.* and test.* in a folder
test_share = 0.2  # share of the records that are only tested on
split_seed = 0  # another number, another split

[model]
init = "seed"  # one silo builds the model from the seed; or the path of a .safetensors file
shared = ["*"]  # patterns of the parameters that are trained together
local = []  # parameters that stay in each silo, for example ["head.*"]
frozen = []  # parameters that nobody trains; all silos must hold the same
# fingerprint = ""  # the layout that every silo must have, as fedplat run show prints it

[rounds]
count = 10
timeout_s = 600.0  # so long a round waits for its silos

[silos]
minimum = 3  # fewer than these, and no round is made
names = []  # who takes part; empty: every enrolled silo
join_timeout_s = 120.0  # so long the start waits for silos beyond the minimum
wait_s = 3600.0  # so long a run below the minimum waits before it pauses
late_join = false  # true: silos that connect later take part from then on

[strategy]
name = "fedavg"  # fedavg, fedprox, fedavgm, fedadam, fedyogi or fedadagrad
weighting = "examples"  # a silo counts by its examples; "uniform": all the same; "declared": by weights
# weights = {{ hospital-a = 2.0, hospital-b = 1.0 }}  # "declared": one for each of [silos] names
# proximal_mu = 0.01  # fedprox: how strongly local training is held to the global model
# learning_rate = 0.1  # fedavgm, fedadam, fedyogi, fedadagrad: the server's step
# momentum = 0.9  # fedavgm
# beta_1 = 0.9  # fedadam, fedyogi
# beta_2 = 0.99  # fedadam, fedyogi
# tau = 0.001  # fedadam, fedyogi, fedadagrad: added to the denominator

[training]
epochs = 1  # passes over a silo's data in a round
# steps = 100  # or so many batches, the same in every silo, instead of epochs
batch_size = 32  # of a silo, shared among its workers
optimizer = "sgd"  # sgd, adam or adamw
learning_rate = 0.1
momentum = 0.0  # sgd only
weight_decay = 0.0
# gradient_clip = 1.0  # largest norm of a batch's gradient
class_weights = []  # one weight a class, in the order of the target's categories; empty: all 1
# local_checkpoint_steps = 1000  # a silo that is killed goes on from its last multiple of these, not from the start
# max_update_norm = 100.0  # an update above it does not leave the silo: its round is lost, not the run

[transport]
precision = "fp32"  # "bf16": weights and updates travel as bfloat16, in half the bytes

[secure_aggregation]
enabled = true  # the server learns sums over silos, and no silo's update; false: it sees each of them
strong = false  # two thirds of a round's silos must agree to open a sum, not half: more may collude, fewer may vanish
clip_range = 8.0  # each coordinate of an update is cut off at plus and minus this
min_cohort = 3  # no sum over fewer silos is opened; 2 hides from the server only
# max_examples = 10000  # no silo may have more training records; without it silos state how many they have

# Differential privacy bounds what anyone can learn from the run about one patient: the smaller epsilon, the less. To
# turn it on: mode "record", weighting "uniform" or "declared" in [strategy], and the keys metrics, delta and epsilon
# without their leading "# ". A silo with a budget (fedplat client budget set) takes part in no other runs, and stops at
# its limit.
[privacy]
mode = "none"  # "record": DP-SGD inside every silo, whose noise not even the server can take off
# metrics = "unprotected"  # figures leave as they are, outside the guarantee; "none": none; "noised": inside of it
# metrics_noise_multiplier = 10.0  # "noised": of an evaluation's sums, to which one patient (or record) adds at most 1
metrics_loss_clip = 3.0  # "noised": no record's loss counts more than this
# delta = 1e-5  # well below 1 / number of patients
# epsilon = 8.0  # of the whole run, noised metrics included: each silo calibrates its noise, more for fewer patients
# noise_multiplier = 1.0  # or, in place of epsilon, so much noise, times clip_norm
# unit = "patient"  # or "record": whom the guarantee is for; the default is the patient where the task names a column
clip_norm = 1.0  # largest norm of one patient's (or record's) gradient
# expected_batch_size = 32  # mean number of patients (or records) in a step; then batch_size is how many fit in memory

[governance]
# Who answers for it; shown in reports, and under the spec's hash. Every line may stay away.
# purpose = "Predict heart failure after discharge"
# legal_basis = "consent"
# ethics_reference = "EC 2026/17"
# controllers = ["Hospital A", "Hospital B"]
# recipients = ["the participating hospitals"]
# retention = "model: 10 years"
shared_patients = []  # [["hospital-a", "hospital-b"]]: these may treat the same patients, whose losses compose

[evaluation]
every = 1  # measure the global model on the silos' test data in every round; 5: in every fifth, and at the end

[checkpoint]
every = 1  # of the older rounds every k-th counts; the newest is always there
keep_last = 3  # so many of those stay
# keep_best = "auroc"  # and the best by this figure

[stop]
metric = "loss"  # or accuracy, precision, recall, f1, auroc, mae, rmse, r2
# patience = 5  # end after so many evaluations in a row without a gain
min_gain = 0.0  # what counts as a gain
# target = 0.1  # end when the metric has reached it
# divergence = 0.05  # end when the silos' updates cancel out: |sum of w u| / sum of w |u| is below it
# kl = 0.5  # end when a silo's scores differ so much from the federation's (where policies share them)
# wall_clock_s = 86400.0  # end after so many seconds
# max_update_norm = 1000.0  # a mean update above it is not applied

"""

_OPTIONS = """\
# The schema and the model. All of it becomes public with the spec: take constants from medical knowledge rather
# than from your patients, and see that no category tells anything about a person.
[task.options]
model = "logistic"  # "mlp" with hidden = [sizes]
hidden = []  # an mlp's hidden layers, for example [64, 32]
scaling = "declared"  # by the constants below; "local": by each silo's own mean and standard deviation
{patient}
# Two categories: the second is the positive one. None: regression, in units of (y - center) / scale, as in
# target = {{ column = "days_in_hospital", center = 6.0, scale = 4.0 }}
{target}
# One line a feature, in any order; silos find them by name:
#   {{ column = "age", kind = "numeric", center = 60.0, scale = 15.0 }} enters as (x - center) / scale
#   {{ column = "age", kind = "numeric", range = [18.0, 90.0] }} is scaled to [-1, 1], what lies outside is clipped
#   {{ column = "sex", kind = "categorical", categories = ["f", "m"], drop_first = true }} one input a category,
#     without drop_first = true also for the first
# missing = "refuse" is the default: a silo with an empty cell does not take part. Else "center" or a number in the
# column's own unit, and for categories "zeros".
features = [
{features}
]
{unused}"""


def _options(lines: tuple[str, str, list[str], list[str]]) -> str:
    patient, target, features, unused = lines
    text = _OPTIONS.format(patient=patient, target=target, features="\n".join(features), unused="\n".join(unused))
    return text.rstrip("\n") + "\n"


# Wisconsin breast cancer (diagnostic), W. N. Street et al. 1993: center and scale of each measurement's mean over the
# cell nuclei of an image, of its standard error, and of its worst value.
_DEMO = """
radius            14    3.5    0.41   0.28   16    4.8
texture           19    4.3    1.2    0.55   26    6.1
perimeter         92    24     2.9    2.0    110   34
area              650   350    40     45     880   570
smoothness        0.096 0.014  0.007  0.003  0.13  0.023
compactness       0.1   0.053  0.025  0.018  0.25  0.16
concavity         0.089 0.08   0.032  0.03   0.27  0.21
concave_points    0.049 0.039  0.012  0.0062 0.11  0.066
symmetry          0.18  0.027  0.021  0.0083 0.29  0.062
fractal_dimension 0.063 0.0071 0.0038 0.0026 0.084 0.018
"""


def _demo_lines() -> tuple[str, str, list[str], list[str]]:
    rows = [line.split() for line in _DEMO.split("\n") if line]
    features = [
        f"  {_numeric(pattern.format(row[0]), float(row[i]), float(row[i + 1]))},"
        for i, pattern in ((1, "mean_{}"), (3, "{}_error"), (5, "worst_{}"))
        for row in rows
    ]
    patient = '# patient = "patient_id"  # whose records stay together in the split'
    return patient, 'target = { column = "diagnosis", categories = ["benign", "malignant"] }', features, []


def _table_lines(table: Table) -> tuple[str, str, list[str], list[str]]:
    key = table.patient
    mark, column = ("", key) if key else ("# ", next(iter(table.keys), None))
    named = toml_string(column.name if column else "patient_id")
    patient = f"{mark}patient = {named}  # whose records stay together in the split; not a feature"
    unused = [(c.name, "it seems to name records") for c in table.keys if c is not key]
    lines = [f"# Not used: {toml_string(name)}, for {why}." for name, why in (*unused, *table.unused)]
    return patient, _target(table.target), [f"  {_feature(c)}" for c in table.features], lines


def _target(column: Column) -> str:
    missing = "\n# Some records have no target; a silo with such records does not take part." if column.missing else ""
    if column.numeric and not column.few_codes:
        values = f"center = {column.center!r}, scale = {column.scale!r}"
    else:
        values = f"categories = {_list(column.categories)}"
    return f"target = {{ column = {toml_string(column.name)}, {values} }}  # check this guess{missing}"


def _feature(column: Column) -> str:
    notes = []
    if column.missing:
        notes.append("some cells are missing here")
    if column.few_codes:
        notes.append("few whole numbers: if they are codes, make it categorical")
    comment = f"  # {'; '.join(notes)}" if notes else ""
    if column.numeric:
        return _numeric(column.name, column.center, column.scale, column.missing) + "," + comment
    missing = ', missing = "zeros"' if column.missing else ""
    start = f'{{ column = {toml_string(column.name)}, kind = "categorical", '
    return f"{start}categories = {_list(column.categories)}{missing} }},{comment}"


def _numeric(name: str, center: float, scale: float, missing: bool = False) -> str:
    rule = ', missing = "center"' if missing else ""
    return f'{{ column = {toml_string(name)}, kind = "numeric", center = {center!r}, scale = {scale!r}{rule} }}'


def _list(texts: tuple[str, ...]) -> str:
    return f"[{', '.join(map(toml_string, texts))}]"
