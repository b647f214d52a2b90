"""The images of a pre-training run."""

import json

from dinojax import processes
from dinojax.config.parser import flatten
from dinojax.config.pretrain import PretrainConfig
from dinojax.data.contrast import check_contrast
from dinojax.data.headers import Headers
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.sources import ImageSource
from dinojax.errors import UsageError
from dinojax.models import Backbone
from dinojax.models.channels import check_readable
from dinojax.models.preprocessing import keep_intensity


def open_source(config: PretrainConfig, backbone: Backbone) -> tuple[ImageSource, Headers]:
    """The images, after a look at their headers; grey ones keep one channel until they are on the device.

    The backbone keeps how their values become grey levels.

    Raises:
      UsageError: they are fewer than a batch; or there are none; or they have other channels than the model reads.
      RunError: they show nothing, or all the same; or the processes of a run have different images or configurations.
    """
    records = read_records(
        config.data,
        labelled=False,
        data_root=config.data_root,
        salt_file=config.salt_file,
        path_column=config.path_column,
        on_bad_file=config.on_bad_file,
    )
    rules = backbone.preprocessing.intensity
    records, headers = open_images(records, config, on_bad_file=config.on_bad_file, known=rules)
    keep_intensity(backbone, headers.rules)
    check_readable(backbone.channels, headers.channels, headers.stacked)
    if len(records) < config.batch_size:
        what = f"batch_size {config.batch_size} is more than the {len(records)} images of {config.data}"
        raise UsageError(f"{what}; lower it")
    check_contrast(records)
    own = ("distributed", "threads", "workers", "cache_gib")
    common = {key: value for key, value in flatten(config).items() if key.split(".")[0] not in own}
    processes.check_agreement(
        {"configuration": json.dumps(common), "images": json.dumps(records.flat().paths.tolist())}
    )
    channels = 1 if backbone.channels == 1 else headers.channels
    windowed = config.window_jitter.probability > 0
    source = ImageSource(
        records, channels=channels, on_bad_file=config.on_bad_file, cache_gib=config.cache_gib, windowed=windowed
    )
    return source, headers
