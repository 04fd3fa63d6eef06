"""Curves, pictures and texts for TensorBoard."""
import html
import os
import socket
import time
from io import BytesIO

STRING = 7  # the type of a tensor of text (DT_STRING)


class Board:
    """An event file of TensorBoard, written at once.

    torch's SummaryWriter writes in a thread: what it can't write, on a full disk say, it says when it is too late.

    Args:
        folder: where the file goes; each start of a run has its own.
        step: where the run goes on; TensorBoard forgets what it has seen of an earlier start from there on.
    """

    def __init__(self, folder, step=0):
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2  # other ranks need them not
        from tensorboard.summary.writer.record_writer import RecordWriter
        self.events, self.summaries, self.tensors = event_pb2, summary_pb2, tensor_pb2
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.records = RecordWriter(open(folder / name, "ab"))
        self._add(file_version="brain.Event:2")
        if step:
            self._add(step=step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        self.flush()

    def scalar(self, tag, step, value):
        self._summary(step, tag=tag, simple_value=value)

    def lines(self, tag, step, values):
        """Add a line for each of {name: value}; in HTML that TensorBoard lets through, so that any sign stands for itself."""
        self._text(tag, step, "".join(f"<p><strong>{name}</strong> <code>{html.escape(str(value))}</code></p>"
                                      for name, value in values.items()))

    def block(self, tag, step, text):
        """Add lines as they are, as a block of code."""
        self._text(tag, step, "".join(f"    {line}\n" for line in text.splitlines()))

    def _text(self, tag, step, text):
        """Add a text in Markdown."""
        self._summary(step, tag=tag, tensor=self.tensors.TensorProto(dtype=STRING, string_val=[text.encode()]),
                      metadata=self.summaries.SummaryMetadata(
                          plugin_data=self.summaries.SummaryMetadata.PluginData(plugin_name="text")))

    def picture(self, tag, step, picture):
        """Add a PIL image in RGB."""
        encoded = BytesIO()
        picture.save(encoded, format="png")
        self._summary(step, tag=tag, image=self.summaries.Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=encoded.getvalue()))

    def _summary(self, step, **value):
        self._add(step=step, summary=self.summaries.Summary(value=[self.summaries.Summary.Value(**value)]))

    def _add(self, **what):
        self.records.write(self.events.Event(wall_time=time.time(), **what).SerializeToString())

    def flush(self):
        self.records.flush()

    def close(self):
        self.records.close()
