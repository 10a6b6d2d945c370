"""No task answers for another, whatever follows, and what fails changes nothing."""

import pickle
import signal
import threading
import time

import keras
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from keras import ops
from layer_checks import to_numpy
from test_data import trainer_forms

import keras_psp
from keras_psp.layers import PSPDense
from keras_psp.layers import TaskDense
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.models._whole_steps import WholeSteps

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 8)).astype("float32")
T = (np.arange(12) % 3).astype("int32")
Y = (np.arange(12) % 4).astype("int32")


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make(optimizer="sgd", **kwargs):
    model = mlp((8,), 4, num_tasks=3, units=16, depth=1, **kwargs)
    model.compile(optimizer, crossentropy())
    return model


def new_inputs():
    task = keras.Input((), dtype="int32", name="task")
    return keras.Input((8,), name="image"), task


def with_behind(behind):
    """A model of a layer that takes the task, and of what stands behind it."""
    image, task = (
        keras.Input((8,), name="image"),
        keras.Input((), name="task", dtype="int32"),
    )
    outputs = behind(PSPDense(6, num_tasks=3)(image, task))
    return TaskModel({"image": image, "task": task}, outputs)


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def assert_same(before, after):
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def attend(x):
    x = ops.reshape(x, (-1, 3, 2))
    return keras.layers.MultiHeadAttention(1, 2)(x, x)


BEHIND = {
    "nothing": lambda x: x,
    "softmax": keras.layers.Softmax(),
    "relu": keras.layers.ReLU(),
    "dense": lambda x: keras.layers.Dense(4, activation="relu")(x),
    "argmax": lambda x: ops.argmax(x, axis=-1),
    "threshold": lambda x: ops.cast(x > 0, "int32"),
    "unsigned": lambda x: ops.cast(x > 0, "uint8"),
    "complex": lambda x: ops.cast(x, "complex64"),
    "batch_normalization": lambda x: keras.layers.BatchNormalization()(x),
    "layer_normalization": lambda x: keras.layers.LayerNormalization()(x),
    "attention": attend,
    "dictionary": lambda x: {"a": keras.layers.Softmax()(x), "b": [ops.argmax(x, -1)]},
}


@pytest.mark.parametrize("name", BEHIND)
def test_an_unknown_task_never_becomes_an_answer(name):
    model = with_behind(BEHIND[name])
    right = keras.tree.flatten(model.predict({"image": X, "task": T}, verbose=0))
    wrong = T.copy()
    wrong[[3, 7]] = 3, -1
    known = np.delete(np.arange(12), [3, 7])
    given = {"image": X, "task": wrong}
    for call in (
        lambda: model.predict(given, verbose=0),
        lambda: model.predict_on_batch(given),
        lambda: model.predict({**given, "task": wrong.astype("int64")}, verbose=0),
    ):
        if BACKEND == "torch":  # It computes at once: the index can be read.
            with pytest.raises(ValueError, match=r"\[0, 3\).*task=3"):
                call()
            continue
        for answer, expected in zip(keras.tree.flatten(call()), right, strict=True):
            np.testing.assert_allclose(answer[known], expected[known], atol=1e-5)
            if answer.dtype.kind in "fc":
                assert np.isnan(answer[[3, 7]]).all()
            else:
                info = np.iinfo(answer.dtype)
                mark = info.min if answer.dtype.kind == "i" else info.max
                assert (answer[[3, 7]] == mark).all()


def test_outputs_that_cannot_say_so_are_refused():
    with pytest.raises(ValueError, match="must be numbers.*bool"):
        with_behind(lambda x: x > 0)


@pytest.fixture(scope="module")
def trained():
    """A trained model, for tests of what must not change it."""
    model = make()
    model.fit({"image": X, "task": T}, Y, verbose=0)
    return model


@pytest.mark.parametrize("task", [2**31, 2**32, 2**32 + 1, -(2**32), 2**63 - 1])
def test_indices_of_64_bits_do_not_wrap(trained, task):
    model = trained
    given = {"image": X, "task": np.full(12, task, "int64")}
    with pytest.raises(ValueError, match=str(task)):
        model(given)
    with pytest.raises(ValueError, match=str(task)):
        model.fit(given, Y, verbose=0)
    if BACKEND != "torch":
        assert np.isnan(model.predict(given, verbose=0)).all()
        assert np.isnan(model.predict_on_batch([given["image"], given["task"]])).all()


def test_a_column_of_indices_may_follow_a_row(trained):
    """TensorFlow compiles for one rank, and mixes up a second one."""
    tf = pytest.importorskip("tensorflow")
    answers = trained.predict({"image": X, "task": T}, verbose=0)
    column = {"image": X, "task": T[:, None]}
    data = tf.data.Dataset.from_tensor_slices(column).batch(4)
    for given in (column, data, [X, T[:, None]]):
        found = trained.predict(given, verbose=0)
        np.testing.assert_allclose(found, answers, atol=1e-6)


def test_a_call_takes_lists(trained):
    answers = to_numpy(trained({"image": X, "task": T}))
    for task in (T.tolist(), tuple(T.tolist()), T[:, None].tolist()):
        for image in (X, X.tolist()):
            found = to_numpy(trained({"image": image, "task": task}))
            np.testing.assert_array_equal(found, answers)
    for task in ([*T[:-1].tolist(), 3], T.astype("float32").tolist(), np.int32(1)):
        with pytest.raises((TypeError, ValueError), match="`task` must"):
            trained({"image": X, "task": task})


def bad_inputs():
    one_hot = np.eye(3, dtype="int32")[T]
    yield "misspelt", {"imgae": X, "task": T}, ValueError, "imgae.*image|image.*imgae"
    yield "missing", {"task": T}, ValueError, "image"
    yield "surplus", {"image": X, "task": T, "more": X}, ValueError, "more"
    yield "float", {"image": X, "task": T + 0.5}, TypeError, "task"
    yield "float in a list", [X, T + 0.5], TypeError, "task"
    yield "booleans", {"image": X, "task": T > 0}, TypeError, "task"
    yield "strings", {"image": X, "task": T.astype(str)}, ValueError, "no names"
    yield "one hot", {"image": X, "task": one_hot}, ValueError, "task"
    yield "other width", {"image": X[:, :5], "task": T}, ValueError, "image"
    yield "unequal", {"image": X, "task": T[:5]}, ValueError, "equally many|number"
    yield "alone", X, ValueError, "image"
    yield "too many", [X, T, T], ValueError, "image"


@pytest.mark.parametrize(
    "given, error, message",
    [pytest.param(*case[1:], id=case[0]) for case in bad_inputs()],
)
def test_bad_inputs_are_named_and_cost_nothing(trained, given, error, message):
    model = trained
    before = state(model)
    answers = model.predict({"image": X, "task": T}, verbose=0)

    def batches():
        yield given, Y

    for call in (
        lambda: model.fit(given, Y, verbose=0),
        lambda: model.fit(batches(), steps_per_epoch=1, shuffle=False, verbose=0),
        lambda: model.evaluate(given, Y, verbose=0),
        lambda: model.predict(given, verbose=0),
        lambda: model.train_on_batch(given, Y),
        lambda: model.test_on_batch(given, Y),
        lambda: model.predict_on_batch(given),
        lambda: model.fit({"image": X, "task": T}, Y, validation_data=(given, Y)),
    ):
        with pytest.raises(error, match=message):
            call()
    assert_same(before, state(model))
    after = model.predict({"image": X, "task": T}, verbose=0)
    np.testing.assert_array_equal(after, answers)


def test_a_training_batch_with_an_unknown_task_changes_nothing():
    model = make("adam")
    model.fit({"image": X, "task": T}, Y, verbose=0)
    before = state(model)
    wrong = T.copy()
    wrong[5] = 3
    for call in (
        lambda: model.fit({"image": X, "task": wrong}, Y, verbose=0),
        lambda: model.fit([X, wrong], Y, verbose=0),
        lambda: model.train_on_batch({"image": X, "task": wrong}, Y),
    ):
        with pytest.raises(ValueError, match=r"\[0, 3\).*task=3"):
            call()
    assert_same(before, state(model))


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_targets_that_do_not_fit_cost_nothing(method):
    model = make("adam")
    model.fit({"image": X, "task": T}, Y, verbose=0)
    before = state(model)
    wrong = np.zeros((12, 7, 3), "float32")
    with pytest.raises(Exception):  # noqa: B017  What Keras and each backend raise.
        getattr(model, method)({"image": X, "task": T}, wrong, verbose=0)
    after = state(model)
    for a, b in zip(before[: len(model.weights)], after, strict=False):
        np.testing.assert_array_equal(a, b)
    model.fit({"image": X, "task": T}, Y, verbose=0)


@trainer_forms
def test_a_bad_batch_is_named_as_it_was_found(trained, form):
    """TensorFlow has errors of its own for what fails while it reads."""
    model = trained
    batches = [({"image": X, "task": task}, Y) for task in (T, np.full(12, 7))]
    with pytest.raises(ValueError, match=r"`task` must lie in \[0, 3\).*task=7"):
        model.fit(form(batches), steps_per_epoch=2, shuffle=False, verbose=0)
    assert np.isfinite(model.predict({"image": X, "task": T}, verbose=0)).all()


@pytest.fixture
def sigint():
    """Sets the handler of interrupts, which a process in the background ignores."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_step(sigint):
    sigint(signal.default_int_handler)
    callback = WholeSteps()
    callback.on_train_batch_begin(0)
    signal.raise_signal(signal.SIGINT)  # The step goes on ...
    with pytest.raises(KeyboardInterrupt):  # ... unless it is interrupted twice.
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)  # Python handles signals between two instructions.
    with pytest.raises(KeyboardInterrupt):
        callback.on_train_batch_end(0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    callback.on_train_batch_begin(1)
    callback.on_train_batch_end(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_of_interrupts_stay(sigint):
    came = []

    def handler(number, frame):
        came.append(number)

    sigint(handler)
    callback = WholeSteps()
    callback.on_train_batch_begin(0)
    signal.raise_signal(signal.SIGINT)
    assert not came
    callback.on_train_batch_end(0)
    assert came == [signal.SIGINT]
    sigint(signal.SIG_IGN)
    callback.on_train_batch_begin(1)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.raise_signal(signal.SIGINT)
    callback.on_train_batch_end(1)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.once
def test_a_fit_that_fails_lets_interrupts_through(sigint):
    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise OSError("disk full")

    sigint(signal.default_int_handler)
    with pytest.raises(OSError, match="disk full"):
        make().fit({"image": X, "task": T}, Y, callbacks=[Fail()], verbose=0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_fit_leaves_a_whole_model():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    model, whole = make("adam"), make("adam")
    whole.set_weights(model.get_weights())
    options = {"batch_size": 2, "shuffle": False, "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        model.fit({"image": X, "task": T}, Y, callbacks=[Interrupt()], **options)
    whole.fit({"image": X[:6], "task": T[:6]}, Y[:6], **options)
    for a, b in zip(state(model), state(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_failing_growth_changes_nothing():
    class Full(keras_psp.contexts.Binary):
        def add_tasks(self, n):
            raise MemoryError("no room")

    image, task = (
        keras.Input((8,), name="image"),
        keras.Input((), name="task", dtype="int32"),
    )
    x = TaskDense(8, num_tasks=3)(image, task)
    outputs = PSPDense(4, context=Full(3))(x, task)
    model = TaskModel({"image": image, "task": task}, outputs)
    before = model.predict({"image": X, "task": T}, verbose=0)
    with pytest.raises(MemoryError):
        model.add_tasks(2)
    assert model.num_tasks == 3
    np.testing.assert_array_equal(
        model.predict({"image": X, "task": T}, verbose=0), before
    )


def test_layers_in_blocks_take_the_task_of_the_model():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = PSPDense(8, num_tasks=3)

        def call(self, inputs):
            return self.dense(inputs)

    block = Block()
    with keras_psp.task(0):
        block(X)
    image, task = (
        keras.Input((8,), name="image"),
        keras.Input((), name="task", dtype="int32"),
    )
    with keras_psp.task(task):
        hidden = block(image)
    model = TaskModel({"image": image, "task": task}, hidden)
    answers = model.predict({"image": X, "task": T}, verbose=0)
    expected = ops.convert_to_numpy(ops.stop_gradient(block.dense(X, T)))
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    model.add_tasks(1)
    assert block.dense.num_tasks == model.num_tasks == 4


def test_a_model_around_one_that_grew_follows():
    inner = mlp((8,), 4, num_tasks=3, units=8, depth=1, head="multi")
    image, task = (
        keras.Input((8,), name="image"),
        keras.Input((), name="task", dtype="int32"),
    )
    inputs = {"image": image, "task": task}
    outer = keras.Model(inputs, keras.layers.Dense(4)(inner(inputs)))
    outer.compile("sgd", crossentropy())
    data = {"image": X, "task": T}
    outer.fit(data, Y, verbose=0)
    outer.predict(data, verbose=0)
    inner.add_tasks(2)
    before = [np.array(ops.convert_to_numpy(w)) for w in inner.trainable_weights]
    outer.fit({**data, "task": T + 2}, Y, verbose=0)
    answers = outer.predict(data, verbose=0)
    eager = ops.convert_to_numpy(ops.stop_gradient(outer(data)))
    np.testing.assert_allclose(answers, eager, atol=1e-5)
    after = [ops.convert_to_numpy(w) for w in inner.trainable_weights]
    assert not any(map(np.array_equal, before, after))


def test_models_that_share_layers_follow():
    image, task = new_inputs()
    layer, inputs = TaskDense(4, num_tasks=3), {"image": image, "task": task}
    inner = TaskModel(inputs, layer(image, task))
    models = [TaskModel(inputs, keras.layers.Dense(4)(inner(inputs))), inner]
    data = {"image": X, "task": T}
    for model in models:
        model.compile("adam", crossentropy())
        model.fit(data, Y, verbose=0)
        model.predict(data, verbose=0)
    models[0].add_tasks(2)
    for model in models:
        before = ops.convert_to_numpy(layer.kernel)
        model.fit({**data, "task": T + 2}, Y, verbose=0)
        assert not np.array_equal(before[3:], ops.convert_to_numpy(layer.kernel)[3:])
        answers = model.predict({**data, "task": T + 2}, verbose=0)
        eager = ops.convert_to_numpy(model({**data, "task": T + 2}))
        np.testing.assert_allclose(answers, eager, atol=1e-5)


def test_batches_without_examples_have_no_answers():
    image, task = new_inputs()
    x = TaskDense(5, num_tasks=3)(PSPDense(6, 3, bias_per_task=True)(image, task), task)
    model = TaskModel(
        {"image": image, "task": task},
        {"a": x, "b": PSPDense(2, 3, base=True)(x, task)},
    )
    data = {"image": X[:0], "task": T[:0]}
    for ask in (model, model.predict_on_batch, model.predict):
        answers = ask(data)
        assert tuple(answers["a"].shape) == (0, 5)
        assert tuple(answers["b"].shape) == (0, 2)


def test_pickled_and_cloned():
    model = make()
    data = {"image": X, "task": T}
    model.fit(data, Y, verbose=0)
    answers = model.predict(data, verbose=0)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.predict(data, verbose=0), answers, atol=1e-6)
    clone = keras.models.clone_model(model)
    assert isinstance(clone, TaskModel)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone.predict(data, verbose=0), answers, atol=1e-6)


def test_threads_may_predict_at_once():
    model, (image, task) = make(), new_inputs()
    inputs = {"image": image, "task": task}
    around = TaskModel(inputs, keras.layers.Identity()(model(inputs)))
    data = {"image": X, "task": T}
    expected, found = model.predict(data, verbose=0), []
    around.predict(data, verbose=0)

    def run(ask):
        for _ in range(3):
            found.append(ops.convert_to_numpy(ask(data)))

    # They share their layers.
    asks = model.predict_on_batch, around.predict_on_batch, model
    threads = [threading.Thread(target=run, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    for answers in found:
        np.testing.assert_allclose(answers, expected, atol=1e-6)


def test_the_loss_reads_the_mask_of_an_output():
    x = keras.Input((4,), dtype="int32", name="x")
    y = keras.layers.Embedding(5, 3, mask_zero=True)(x)
    plain = keras.Model(x, keras.layers.Dense(6)(y))
    rng = np.random.default_rng(0)
    words, labels = rng.integers(0, 5, (6, 4)), rng.integers(0, 6, (6, 4))
    given = {"x": words, "task": np.arange(6) % 2}
    copied = keras_psp.convert(plain, 2, shared="copy")
    models = copied, keras_psp.stack([plain, plain])
    found = []
    for model, inputs in ((plain, words), *((model, given) for model in models)):
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        found.append(model.evaluate(inputs, labels, verbose=0))
    np.testing.assert_allclose(found[1:], found[0], rtol=1e-5)


@pytest.mark.parametrize("when", ["on_epoch_end", once("on_train_batch_end")])
def test_a_callback_may_add_and_remove_tasks(when):
    def change(*args, **kwargs):
        model.add_tasks(2)
        model.remove_tasks(n=1)

    callback = keras.callbacks.Callback()
    setattr(callback, when, change)
    model, other = (mlp((8,), 4, 3, units=8, depth=1, head="multi") for _ in range(2))
    other.set_weights(model.get_weights())
    data = {"image": X, "task": T}
    for each in (model, other):
        each.compile(keras_psp.optimizers.PerTask("adam"), crossentropy())
        callbacks = [callback] if each is model else []
        each.fit(data, Y, epochs=2, shuffle=False, callbacks=callbacks, verbose=0)
    assert model.num_tasks == 5
    for a, b in zip(model.trainable_variables, other.trainable_variables, strict=True):
        a, b = (ops.convert_to_numpy(v) for v in (a, b))
        np.testing.assert_allclose(a[: len(b)], b, rtol=1e-5, atol=1e-6)
    answers = model.predict({"image": X, "task": T + 2}, verbose=0)
    assert np.isfinite(answers).all()
