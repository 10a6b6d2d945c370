"""The one reader: every form of data, and what is wrong with it."""

import pickle

import keras
import numpy as np
import pytest

from keras_psp._core import data as reader
from keras_psp._core.data import InputCheck
from keras_psp._core.data import check_batch
from keras_psp._core.data import checked
from keras_psp._core.data import read_examples
from keras_psp._core.data import read_inputs

N, NUM_TASKS = 12, 3
X = np.arange(N * 4, dtype="float32").reshape(N, 4)
T = np.arange(N, dtype="int32") % NUM_TASKS
Y = np.arange(N, dtype="int32") % 2
W = np.linspace(0.5, 1, N, dtype="float32")
TASK_INPUTS = {
    "image": keras.KerasTensor((None, 4)),
    "task": keras.KerasTensor((None,), "int32"),
}
IMAGE = {"image": TASK_INPUTS["image"]}
TWO = {"a": keras.KerasTensor((None, 4)), "b": keras.KerasTensor((None, 2))}


class Batches(keras.utils.PyDataset):
    """Batches that are there already."""

    def __init__(self, batches, **kwargs):
        super().__init__(**kwargs)
        self.batches, self.epochs = batches, 0

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]

    def on_epoch_end(self):
        self.epochs += 1


def as_list(batches):
    return list(batches)


def as_generator(batches):
    return (batch for batch in batches)


def as_iterator(batches):
    return iter(list(batches))


def as_py_dataset(batches):
    return Batches(list(batches))


def as_dataset(batches):
    tf = pytest.importorskip("tensorflow")
    batches = list(batches)
    return tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=_spec_of(tf, batches[0])
    )


def _spec_of(tf, structure):
    if isinstance(structure, dict):
        return {name: _spec_of(tf, each) for name, each in structure.items()}
    if isinstance(structure, (list, tuple)):
        return tuple(_spec_of(tf, each) for each in structure)
    return tf.TensorSpec((None, *np.shape(structure)[1:]), np.asarray(structure).dtype)


def as_loader(batches):
    torch = pytest.importorskip("torch")
    batches = list(batches)
    # Collated already: `batch_size=None` hands elements over as they are.
    return torch.utils.data.DataLoader(batches, batch_size=None)


FORMS = [as_list, as_generator, as_iterator, as_py_dataset, as_dataset, as_loader]
TRAINER_FORMS = [as_generator, as_iterator, as_py_dataset, as_dataset, as_loader]
forms = pytest.mark.parametrize("form", FORMS)
trainer_forms = pytest.mark.parametrize("form", TRAINER_FORMS)


def halves(*arrays):
    """Two batches, of 5 and of 7 examples."""
    for part in (slice(5), slice(5, None)):
        batch = keras.tree.map_structure(lambda each: each[part], arrays)  # noqa: B023
        yield batch[0] if len(batch) == 1 else batch


def assert_same(found, expected):
    assert keras.tree.flatten(found) and type(found) is type(expected)
    keras.tree.map_structure(np.testing.assert_array_equal, found, expected)


# Inputs without labels.


@forms
@pytest.mark.parametrize(
    "parts", [(X,), ({"image": X},), (X, Y), (X, Y, W), ({"image": X}, Y)]
)
def test_inputs_are_read_from_every_form(form, parts):
    found = read_inputs(form(halves(*parts)), IMAGE)
    assert_same(found, {"image": X})
    found = read_inputs(form(halves(*parts)), IMAGE, limit=6)
    assert_same(found, {"image": X[:6]})


@forms
@pytest.mark.parametrize("labels", [(), (Y,), (Y, W)])
@pytest.mark.parametrize("named", [True, False])
def test_several_inputs_are_read_from_every_form(form, labels, named):
    x = {"b": X[:, :2], "a": X} if named else (X, X[:, :2])
    batches = [
        batch if labels or named else tuple(batch) for batch in halves(x, *labels)
    ]
    assert_same(read_inputs(form(batches), TWO), {"a": X, "b": X[:, :2]})


@pytest.mark.parametrize(
    "given",
    [
        X,
        [X],
        (X,),
        {"image": X},
        (X, Y),
        (X, Y, W),
        ({"image": X}, Y),
        [({"image": X}, Y)],
        keras.ops.convert_to_tensor(X),
        {"image": X.tolist()},
        X[:, :, None],
    ],
)
def test_inputs_are_read_from_arrays(given):
    assert_same(read_inputs(given, IMAGE), {"image": X})


def test_several_inputs_are_read_from_arrays():
    expected = {"a": X, "b": X[:, :2]}
    for given in (
        [X, X[:, :2]],
        (X, X[:, :2]),
        ([X, X[:, :2]], Y),
        (expected, Y, W),
        [[X, X[:, :2]]],
        [expected],
    ):
        assert_same(read_inputs(given, TWO), expected)


@pytest.mark.parametrize(
    "given, inputs",
    [
        ((X, X), IMAGE),
        (({"image": X}, {"image": X}), IMAGE),
        (([X, X[:, :2]], [X, X[:, :2]]), TWO),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(given, inputs):
    with pytest.raises(ValueError, match="two batches and as `.x, y.`.*a tuple of 2"):
        read_inputs(given, inputs)
    assert len(read_inputs(list(given), inputs)[next(iter(inputs))]) == 2 * N


BAD_INPUTS = {
    "misspelt": ({"imgae": X}, ValueError, r"\['image'\].*'imgae'.*mean 'image'"),
    "surplus": ({"image": X, "z": X}, ValueError, r"\['image'\].*'z' is unknown"),
    "missing": ({}, ValueError, r"\['image'\].*'image' is missing"),
    "shape": (X[:, :3], ValueError, r"'image' of shape \(None, 4\).*\(\w*, 3\)"),
    "rank": (X[:, 0], ValueError, r"'image' of shape \(None, 4\).*\(\w*,\)"),
    "strings": (X.astype(str), TypeError, "numbers.*'image'. Received: dtype"),
    "nan": (X * np.nan, ValueError, "finite. Received: NaN or inf in 'image'"),
    "many": ((X, Y, W, W), ValueError, r"`\(x, y\)`.*a (tuple|list) of 4"),
    "empty": (X[:0], ValueError, "at least one example"),
}


@forms
@pytest.mark.parametrize("what", BAD_INPUTS)
def test_bad_inputs_are_refused_in_every_form(form, what):
    batch, error, message = BAD_INPUTS[what]
    if form is as_loader and what == "strings":
        pytest.skip("torch has no strings")
    if form is as_dataset and what == "missing":
        pytest.skip("tf.data has no empty elements")
    with pytest.raises(error, match=message):
        read_inputs(form([batch, batch]), IMAGE)


@forms
def test_batches_that_differ_are_refused_in_every_form(form):
    inputs = {"image": keras.KerasTensor((None, None))}
    batches = [X, X[:, :3]]
    if form is as_dataset:
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_generator(
            lambda: iter(batches), output_signature=tf.TensorSpec((None, None))
        )
    else:
        data = form(batches)
    with pytest.raises(ValueError, match=r"one shape. Received: .*\(3,\), \(4,\)"):
        read_inputs(data, inputs)


@pytest.mark.parametrize("form", [as_list, as_generator, as_iterator, as_py_dataset])
def test_an_iterator_without_batches_is_refused(form):
    with pytest.raises(ValueError, match="at least one example"):
        read_inputs(form([]), IMAGE)
    with pytest.raises(ValueError, match="at least one example"):
        read_examples(form([]), 8)


@pytest.mark.parametrize("given", [None, 3, "images", b"", object()])
def test_what_is_no_data_is_refused(given):
    with pytest.raises(TypeError, match="`data` must hold arrays.*type"):
        read_inputs(given, IMAGE)
    with pytest.raises(TypeError, match="`data` must hold arrays.*type"):
        read_examples(given, 8)
    with pytest.raises(TypeError, match="`data` must hold|must be an array"):
        read_inputs([given], IMAGE)
    if given is not None:
        with pytest.raises(TypeError, match="`data` must hold arrays.*type"):
            read_examples([given], 8)


def test_unequal_inputs_are_refused():
    with pytest.raises(ValueError, match="equally many.*'a': 12, 'b': 11"):
        read_inputs({"a": X, "b": X[1:, :2]}, TWO)


def test_unbatched_datasets_are_refused():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(({"image": X, "task": T}, Y))
    with pytest.raises(ValueError, match=r"\(4,\), one example without a batch"):
        checked(data, InputCheck(TASK_INPUTS, NUM_TASKS))
    with pytest.raises(ValueError, match=r"\(4,\), one example without a batch"):
        read_inputs(tf.data.Dataset.from_tensor_slices(X), IMAGE)
    with pytest.raises(ValueError, match="call `batch"):
        read_examples(data, 8)


def test_endless_data_need_a_limit():
    tf = pytest.importorskip("tensorflow")

    class Endless(Batches):
        num_batches = None

    for data in (
        tf.data.Dataset.from_tensor_slices(X).batch(5).repeat(),
        Endless([X] * 9),
    ):
        with pytest.raises(ValueError, match="come to an end. Received: an endless"):
            read_inputs(data, IMAGE)
        assert len(read_inputs(data, IMAGE, limit=20)["image"]) == 20
    assert len(read_examples(Endless([(X, Y)] * 9), 20)[0]) == 20


# Examples with labels.


@forms
@pytest.mark.parametrize(
    "parts",
    [
        (X, Y),
        (X, Y, W),
        ({"image": X, "task": T}, Y),
        ({"image": X}, (Y, X)),
        ({"image": X}, {"one": Y, "two": X}, W),
        ({"image": X},),
    ],
)
def test_examples_are_read_from_every_form(form, parts):
    x, y, sample_weight = read_examples(form(halves(*parts)), 100)
    expected = (*parts, None, None)[:3]
    for found, part in zip((x, y, sample_weight), expected, strict=True):
        if part is None:
            assert found is None
        else:
            assert len(keras.tree.flatten(found)) == len(keras.tree.flatten(part))
            for a, b in zip(
                keras.tree.flatten(found), keras.tree.flatten(part), strict=True
            ):
                np.testing.assert_array_equal(a, b)
    x, _, _ = read_examples(form(halves(*parts)), 6)
    assert {len(each) for each in keras.tree.flatten(x)} == {6}


def test_examples_are_read_from_arrays():
    for parts in ((X, Y), (X, Y, W), ([X, T], [Y, Y]), ({"image": X},), (X,)):
        found = read_examples(parts, 100)
        for a, b in zip(found, (*parts, None, None), strict=False):
            assert (a is None) == (b is None)
            keras.tree.map_structure(np.testing.assert_array_equal, a, b)


def test_sorted_arrays_are_drawn_from():
    x = np.arange(1000.0)[:, None]
    y = np.repeat(np.arange(10), 100)
    for data in (
        (x, y),
        [(x[i : i + 10], y[i : i + 10]) for i in range(0, 1000, 10)],
        Batches([(x[i : i + 10], y[i : i + 10]) for i in range(0, 1000, 10)]),
    ):
        taken, labels, _ = read_examples(data, 200)
        assert len(taken) == 200 == len(np.unique(taken))
        assert len(np.unique(labels)) > 5
        np.testing.assert_array_equal(y[taken[:, 0].astype(int)], labels)
        again = read_examples(data, 200)
        np.testing.assert_array_equal(taken, again[0])
        everything = read_examples(data, 1000)
        np.testing.assert_array_equal(everything[0], x)


BAD_EXAMPLES = {
    "unequal": ((X, Y[1:]), ValueError, r"equally many.*'x': \[12\], 'y': \[11\]"),
    "many": ((X, Y, W, W), ValueError, r"`\(x, y\)`.*a (tuple|list) of 4"),
    "empty": ((X[:0], Y[:0]), ValueError, "at least one example"),
}


@forms
@pytest.mark.parametrize("what", BAD_EXAMPLES)
def test_bad_examples_are_refused_in_every_form(form, what):
    batch, error, message = BAD_EXAMPLES[what]
    with pytest.raises(error, match=message):
        read_examples(form([batch, batch]), 100)


def test_bad_examples_are_refused():
    for batch, error, message in BAD_EXAMPLES.values():
        with pytest.raises(error, match=message):
            read_examples(batch, 100)
    with pytest.raises(ValueError, match=r"labels as a tuple `\(x, y\)`"):
        read_examples([X, Y], 100)
    with pytest.raises(ValueError, match="one kind"):
        read_examples([(X, Y), ({"image": X}, Y)], 100)
    with pytest.raises(TypeError, match="must hold arrays.*Received: 0"):
        read_examples((X, [0, 1]), 100)


# Data for Keras' trainer.


GOOD = {"image": X, "task": T}


def with_task(task):
    return {"image": X[: len(task)], "task": task}


BAD_TASKS = {
    "float": (T + 0.9, TypeError, "integer dtype.*float64"),
    "float list": ((T + 0.9).tolist(), TypeError, "integer dtype.*float64"),
    "boolean": (T > 0, TypeError, "integer dtype.*bool"),
    # Names, where the tasks have none; in a graph of tf.data they cannot be read.
    "strings": (
        T.astype(str),
        (TypeError, ValueError),
        "tasks have no names|integer dtype.*<U",
    ),
    "objects": (T.astype(object), TypeError, "integer dtype.*object"),
    "one-hot": (np.eye(3, dtype="int32")[T], ValueError, r"\(batch,\).*\(\w+, 3\)"),
    "scalar": (np.int32(1), ValueError, r"\(batch,\).*shape \(\)"),
    "high": (T + 1, ValueError, r"in \[0, 3\). Received: task=3"),
    "low": (T - 1, ValueError, r"in \[0, 3\). Received: task=-1"),
    "int64": (T.astype("int64") + 2**32, ValueError, "task=4294967296"),
    "uint64": (np.full(N, 2**64 - 1, "uint64"), ValueError, "task=1844674407370955"),
    "unequal": (T[1:], ValueError, "equally many.*'image': 12, 'task': 11"),
    "ragged": ([[0], [1, 2]] * 6, ValueError, "'task' must hold examples of one shape"),
}


@pytest.mark.parametrize("what", BAD_TASKS)
@pytest.mark.parametrize("named", [True, False])
def test_bad_tasks_are_refused_in_arrays(what, named):
    task, error, message = BAD_TASKS[what]
    given = {"image": X, "task": task} if named else [X, task]
    with pytest.raises(error, match=message):
        checked(given, InputCheck(TASK_INPUTS, NUM_TASKS))


@trainer_forms
@pytest.mark.parametrize("what", BAD_TASKS)
def test_bad_tasks_are_refused_in_every_form(form, what):
    task, error, message = BAD_TASKS[what]
    if what in ("float list", "objects", "scalar", "unequal", "ragged"):
        return  # Whoever makes batches makes arrays of equal length.
    if form is as_loader and what in ("strings", "uint64"):
        return
    check = InputCheck(TASK_INPUTS, NUM_TASKS)
    batches = [(GOOD, Y), ({"image": X, "task": task}, Y)]
    if form is as_dataset:
        batches = batches[1:]
        message = message.replace("<U", "string")
    with pytest.raises(error, match=message), check.plain_errors():
        list(checked(form(batches), check))


@trainer_forms
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint64"])
def test_unknown_tasks_are_marked_in_every_form(form, dtype):
    if form is as_loader and dtype == "uint64":
        return
    check = InputCheck(TASK_INPUTS, NUM_TASKS, unknown="mark")
    task = np.tile(T, 2).astype(dtype)
    wrong = 2**32 + 1 if dtype.endswith("64") else 3
    task[[2, 5]] = wrong, np.iinfo(dtype).max
    x = np.tile(X, (2, 1))
    expected = np.tile(T, 2)
    expected[[2, 5]] = -1
    found = [
        batch[0] for batch in checked(form(halves({"image": x, "task": task})), check)
    ]
    assert [str(reader.to_numpy(each["task"]).dtype) for each in found] == ["int32"] * 2
    for name, whole in (("task", expected), ("image", x)):
        arrays = [reader.to_numpy(each[name]) for each in found]
        np.testing.assert_array_equal(np.concatenate(arrays), whole)
    found = checked({"image": x, "task": task[:, None]}, check)
    assert found["task"].dtype == "int32"
    np.testing.assert_array_equal(found["task"], expected)  # As the input has it.


BAD_NAMES = {
    "misspelt": ({"imgae": X, "task": T}, r"'image', 'task'.*'imgae'.*mean 'image'"),
    "missing": ({"image": X}, r"'image', 'task'.*'task' is missing"),
    "surplus": ({**GOOD, "a": X}, r"'image', 'task'.*'a' is unknown"),
    "shape": ({"image": X[:, :3], "task": T}, r"\(None, 4\).*3\)"),
    "array": (X, r"'image', 'task'.*array of shape \(\w+, 4\)"),
}


@trainer_forms
@pytest.mark.parametrize("what", BAD_NAMES)
def test_bad_names_are_refused_in_every_form(form, what):
    x, message = BAD_NAMES[what]
    message = message.replace("array of shape", "(array of shape|TensorSpec)")
    check = InputCheck(TASK_INPUTS, NUM_TASKS)
    with pytest.raises(ValueError, match=message):
        list(checked(form([(x, Y)]), check))
    with pytest.raises(ValueError, match=message):
        checked(x, check)
    with pytest.raises(ValueError, match=message):
        check_batch((x, Y), check)


def test_lists_are_read_in_the_order_of_names():
    check = InputCheck(TASK_INPUTS, NUM_TASKS)
    assert_same(checked([X, T], check), GOOD)
    with pytest.raises(ValueError, match="'image', 'task'.*a list of 3"):
        checked([X, T, T], check)
    check = InputCheck(TASK_INPUTS, NUM_TASKS, by_position=False)
    with pytest.raises(ValueError, match="as a dictionary. Received: a list of 2"):
        checked([X, T], check)


def test_tensors_stay_tensors():
    """Keras refuses a mixture of arrays and tensors in a call."""
    given = keras.tree.map_structure(keras.ops.convert_to_tensor, GOOD)
    found = checked(given, InputCheck(TASK_INPUTS, NUM_TASKS))
    assert all(keras.ops.is_tensor(value) for value in found.values())
    assert_same(keras.tree.map_structure(reader.to_numpy, found), GOOD)


def test_soft_contexts_are_checked():
    inputs = {**TASK_INPUTS, "task": keras.KerasTensor((None, NUM_TASKS))}
    check = InputCheck(inputs, NUM_TASKS)
    soft = np.full((N, NUM_TASKS), 1 / 3, "float32")
    assert_same(checked(with_task(soft), check), with_task(soft))
    with pytest.raises(TypeError, match="soft contexts.*int32"):
        checked(with_task(T), check)
    with pytest.raises(ValueError, match=r"weight for each of 3 tasks.*\(12, 2\)"):
        checked(with_task(soft[:, :2]), check)


def test_a_checked_dataset_keeps_its_length_and_options():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((GOOD, Y)).batch(5)
    options = tf.data.Options()
    options.deterministic = False
    found = checked(data.with_options(options), InputCheck(TASK_INPUTS, NUM_TASKS))
    assert int(found.cardinality()) == 3 and found.options().deterministic is False
    assert found.element_spec[0]["image"].shape == (None, 4)
    assert int(checked(data.repeat(), InputCheck(TASK_INPUTS, 3)).cardinality()) == -1


def test_a_checked_py_dataset_is_the_other():
    data = Batches(list(halves(GOOD, Y)), workers=2, max_queue_size=3)
    found = checked(data, InputCheck(TASK_INPUTS, NUM_TASKS))
    assert (found.workers, found.max_queue_size, found.num_batches) == (2, 3, 2)
    found.on_epoch_end()
    assert data.epochs == 1
    assert pickle.loads(pickle.dumps(found)).num_batches == 2


def test_a_checked_loader_is_the_other():
    torch = pytest.importorskip("torch")

    class Loader(torch.utils.data.DataLoader):
        def __iter__(self):
            for image, task, y in super().__iter__():
                yield {"image": image, "task": task}, y

    data = torch.utils.data.TensorDataset(*map(torch.as_tensor, (X, T, Y)))
    loader = Loader(data, batch_size=5)
    found = checked(loader, InputCheck(TASK_INPUTS, NUM_TASKS))
    assert isinstance(found, Loader) and (len(found), found.batch_size) == (3, 5)
    for _ in range(2):  # Epochs.
        for (x, y), (expected, labels) in zip(found, loader, strict=True):
            assert x["task"].dtype == torch.int32
            assert torch.equal(x["image"], expected["image"])
            assert torch.equal(y, labels)
    with pytest.raises(ValueError, match="task=2"):
        list(checked(loader, InputCheck(TASK_INPUTS, 2)))
    assert not hasattr(loader, "check") and type(loader) is Loader


def test_errors_are_raised_as_they_were_found():
    check = InputCheck(TASK_INPUTS, NUM_TASKS)
    with pytest.raises(KeyError), check.plain_errors():
        raise KeyError("else")
    with pytest.raises(ValueError, match="task=3") as found, check.plain_errors():
        try:
            check(with_task(T + 1))
        except ValueError as error:
            raise RuntimeError("Keras") from error
    assert isinstance(found.value.__cause__, RuntimeError)


def test_an_empty_iterator_is_refused():
    with pytest.raises(ValueError, match="at least one batch.*empty generator"):
        list(checked(as_generator([]), InputCheck(TASK_INPUTS, NUM_TASKS)))


def test_what_keras_refuses_is_left_to_keras():
    check = InputCheck(TASK_INPUTS, NUM_TASKS)
    for data in (None, object(), "images"):
        assert checked(data, check) is data
