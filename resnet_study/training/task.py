"""What `cifar10_train.Train` asks of a training: what is trained, and on what. Its loop knows nothing of that.

A task is made from settings, run folder and data set. `training.tasks.Classification` is the task of one label or several for each image,
`SeveralHeads` that of one for each head; `flowers.transfer.Transfer` trains a new head on a backbone. All have:

data         `data`, `training`, `validation`, `normalization`, `training_batches`, `validation_batches`, `test_batches`, `watched_images`
network      `build`, `begin` with its first weights; `build_proxy`; `build_for_users`, `copy_for_users`, `class_names`; `name_variables` and
             `facts` for checkpoints; `keep_files` of what a resumed run needs
course       `stage_ends`, `report_freq`, `learning_rate`, `rates`, `update`, `measure`, `teach`, `chosen_by`, `watchers`, `validates_fully`
what is said `describe_data`, `describe`
"""

import keras

from resnet_study.class_names import ClassNames
from resnet_study.training.step import measure_classes, measure_labels


class Task:
    """What most tasks have alike.

    Attributes:
        config: settings.
        data: the data set, which tells the names of its classes and whether an image has several.
        class_weights: factor of the loss of each class, float32 [classes]; None = 1.
        teach: function (images, logits, losses) -> losses by which a teacher helps, see `distillation`; None = there is none.
        was_given: whether a program gave the images, so that no command can go on with the run.
        extended_at: the step that the training was to end with before it was made longer for the last time; 0 = it was not.
    """

    teach = None
    was_given = False

    @property
    def class_names(self) -> ClassNames:
        """{name of the head: names of its classes}; a single head is called ""."""
        reading = self.config.reading()
        names = {"": list(self.data.class_names)}
        return ClassNames(
            names,
            reading["resize"],
            self.data.multi_label,
            reading["jpeg_size"],
            getattr(self.config, "value_range", ""),
        )

    def build_proxy(self, policy: str, strategy) -> keras.Model | None:
        """The small network that chooses what is trained on, see `proxy`; None = all images are."""

    def rates(self, model: keras.Model) -> list[float] | None:
        """Factor of the learning rate of each trainable variable; None = all have the same."""

    def measure(self, logits, labels) -> tuple:
        """What training lowers and reports tell of some images, see `step.measure_classes`."""
        if self.data.multi_label:
            return measure_labels(logits, labels, self.config.label_smoothing)
        return measure_classes(logits, labels, self.config.label_smoothing, self.class_weights)
