"""T5, CLIP and an autoencoder, opened from local folders by transformers and diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.data.contents import known_file
from hekaton.data.identity import fingerprint
from hekaton.errors import ConfigError
from hekaton_flux.encoders import EncoderSizes
from hekaton_flux.images import Floats, Pixels
from hekaton_flux.settings import FlowMatchingSection

if TYPE_CHECKING:
    import torch


class Autoencoder:
    """diffusers' ``AutoencoderKL``, from its folder or from the file that it was published in."""

    def __init__(self, path: str) -> None:
        """:raises ConfigError: for what cannot be opened, or makes latents of other than 8 by 8 pixels."""
        if Path(path).is_file():
            self.model = _published_autoencoder(Path(path))
        else:
            _, self.model = _opened("autoencoder", path, "AutoencoderKL")
        content = self.model.config
        if content.in_channels != 3 or content.out_channels != 3 or not content.scaling_factor:
            raise ConfigError(
                f"flow_matching.autoencoder = '{path}': in_channels = {content.in_channels}, out_channels = "
                f"{content.out_channels} and scaling_factor = {content.scaling_factor}, where 3, 3 and a "
                "number other than 0 were expected"
            )
        pixels = 2 ** (len(content.block_out_channels) - 1)
        if pixels != 8:
            raise ConfigError(
                f"flow_matching.autoencoder = '{path}': a latent is of {pixels} by {pixels} "
                "pixels, the model is trained on those of 8 by 8"
            )
        self._shift, self._scale = content.shift_factor or 0.0, content.scaling_factor
        self.latent_channels: int = content.latent_channels

    def image(self, pixels: Pixels) -> tuple[Floats, Floats]:
        import torch

        with torch.no_grad():
            given = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
            found = self.model.encode(given.to(self.model.device)).latent_dist
            mean, std = (found.mean - self._shift) * self._scale, found.std * self._scale
        return mean[0].cpu().numpy(), std[0].cpu().numpy()

    def pixels(self, latents: Floats) -> Pixels:
        """The image that it makes of latents, (height, width, 3)."""
        import torch

        with torch.no_grad():
            given = torch.from_numpy(latents)[None].to(self.model.device) / self._scale + self._shift
            decoded = self.model.decode(given).sample[0].cpu()
        values: Pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        return values


class PretrainedEncoders:
    """T5, CLIP and an autoencoder from local folders, by transformers and diffusers."""

    def __init__(self, section: FlowMatchingSection) -> None:
        """:raises ConfigError: for a folder that cannot be opened, or sizes that training cannot take."""
        self._text_length = section.text_length
        self._t5_tokenizer, self._t5 = _opened("text_encoder", section.text_encoder, "T5EncoderModel")
        self._clip_tokenizer, self._clip = _opened("pooled_encoder", section.pooled_encoder, "CLIPTextModel")
        self._autoencoder = Autoencoder(section.autoencoder)
        self.sizes = EncoderSizes(
            latent_channels=self._autoencoder.latent_channels,
            text_dim=self._t5.config.d_model,
            pooled_dim=self._clip.config.hidden_size,
        )
        contents = {
            "text_encoder": _content(section.text_encoder, tokenizer_of(section.text_encoder)),
            "pooled_encoder": _content(section.pooled_encoder, tokenizer_of(section.pooled_encoder)),
            "autoencoder": _content(section.autoencoder),
        }
        self.fingerprint = ", ".join(f"{field} {content}" for field, content in contents.items())
        self.image, self.pixels = self._autoencoder.image, self._autoencoder.pixels

    @property
    def of_texts(self) -> tuple[Any, Any]:
        """The modules that encode texts."""
        return self._t5, self._clip

    def to(self, device: torch.device) -> None:
        """Encode on another device."""
        for module in (self._t5, self._clip, self._autoencoder.model):
            module.to(device)

    def text(self, text: str) -> tuple[Floats, Floats]:
        import torch

        with torch.no_grad():
            ids = _ids(self._t5_tokenizer, text, self._text_length)
            states = self._t5(ids.to(self._t5.device)).last_hidden_state
            ids = _ids(self._clip_tokenizer, text, self._clip.config.max_position_embeddings)
            pooled = self._clip(ids.to(self._clip.device)).pooler_output
        return states[0].cpu().numpy(), pooled[0].cpu().numpy()


def _ids(tokenizer: Any, text: str, length: int) -> Any:
    text = text.encode("utf-8", "replace").decode()  # tokenizers take no lone surrogates, which JSON can have
    return tokenizer(
        text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


# Of the published autoencoder (ae_params in src/flux/util.py of black-forest-labs/flux).
_PUBLISHED = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True, "sample_size": 1024,
}  # fmt: skip


def _published_autoencoder(path: Path) -> Any:
    """The autoencoder of ``ae.safetensors``, the single file that it was published in.

    :raises ConfigError: for a file of something else.
    """
    _libraries("autoencoder")
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = AutoencoderKL(**_PUBLISHED)
    try:
        model.load_state_dict(convert_ldm_vae_checkpoint(load_file(path), model.config))
    except (OSError, SafetensorError, KeyError, RuntimeError, IndexError, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise ConfigError(
            f"flow_matching.autoencoder = '{path}' is not the published ae.safetensors: {reason}"
        ) from e
    return model.eval().requires_grad_(False)


def _libraries(field: str) -> tuple[Any, Any]:
    try:
        import diffusers
        import transformers
    except ImportError as e:
        raise ConfigError(
            f"flow_matching.{field} needs transformers and diffusers: {e}",
            hint='pip install "hekaton-flux[encoders]"',
        ) from e
    return diffusers, transformers


def _opened(field: str, path: str, name: str) -> tuple[Any, Any]:
    """The tokenizer of a folder, where it is of an encoder of texts, and the model, which is not trained."""
    check_folders({field: path})
    diffusers, transformers = _libraries(field)
    kind = getattr(diffusers if name == "AutoencoderKL" else transformers, name)
    tokenizer = None
    try:
        if name != "AutoencoderKL":
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_of(path), local_files_only=True)
        model, found = kind.from_pretrained(path, local_files_only=True, output_loading_info=True)
    except MemoryError:
        raise
    except Exception as e:  # SafetensorError and others that damaged files cause have no base but this
        raise ConfigError(f"flow_matching.{field} = '{path}' is no {name}: {e}") from e
    if missing := sorted(found["missing_keys"]):  # they would be random
        raise ConfigError(
            f"flow_matching.{field} = '{path}' is no {name}: its weights lack {missing[0]}"
            + (f" and {len(missing) - 1:,} more" if missing[1:] else "")
        )
    if tokenizer is not None:
        _check_tokenizer(tokenizer, Path(tokenizer_of(path)), model.config.vocab_size, field)
    return tokenizer, model.eval().requires_grad_(False)


def _check_tokenizer(tokenizer: Any, folder: Path, ids: int, field: str) -> None:
    """:raises ConfigError: for one that has no vocabulary, does not pad, or gives more than ``ids`` ids."""
    what = f"the tokenizer of flow_matching.{field} in '{folder}'"
    files = tokenizer.vocab_files_names.values()
    if files and not any((folder / file).is_file() for file in files):
        raise ConfigError(f"{what} is missing: there is none of {', '.join(sorted(files))}")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{what} has no pad_token, with which texts are made equally long")
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= ids:
        raise ConfigError(f"{what} is of another model: it has ids up to {largest:,}, the model {ids:,}")


def tokenizer_of(path: str) -> str:
    """The folder of an encoder's tokenizer: its own, or as FLUX.1 is published ``tokenizer`` beside
    ``text_encoder``, and ``tokenizer_2`` beside ``text_encoder_2``."""
    folder = Path(path).absolute()
    beside = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))
    own = (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file()
    return path if own or not beside.is_dir() else str(beside)


def check_folders(paths: Mapping[str, str]) -> None:
    """:param paths: of encoders, by field.
    :raises ConfigError: naming all where there is no folder of a model, or for an autoencoder no file either.
    """
    wrong = {field: said for field, path in paths.items() if (said := _lacking(field, path))}
    if wrong:
        hub = [
            f"it is read from a folder of this machine: hf download {path} --local-dir FOLDER"
            for field, path in paths.items()
            if field in wrong and path.count("/") == 1 and not path.startswith((".", "/", "~"))
        ]
        raise ConfigError(
            "; ".join(f"flow_matching.{field} = '{paths[field]}' {said}" for field, said in wrong.items()),
            hint="\n".join(hub),
            fields=[f"flow_matching.{field}" for field in wrong],
        )


def _lacking(field: str, path: str) -> str:
    folder = Path(path)
    if field == "autoencoder" and folder.is_file():
        return ""
    if not folder.is_dir():
        return "is no folder"
    return "" if (folder / "config.json").is_file() else "has no config.json"


_OF_OTHERS = (".md", ".h5", ".msgpack", ".onnx", ".ot")
"""Suffixes of files in published folders that torch's classes do not read."""


def _content(*paths: str) -> str:
    """Of the folders of an encoder and its tokenizer, or of a file, in 16 letters. Files that say where a
    folder came from and when (``.cache`` of a download, ``.git``) are no part of it."""
    contents = []
    for path in map(Path, dict.fromkeys(paths)):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        for file in sorted(files):
            name = file.relative_to(path)
            if not (name.suffix in _OF_OTHERS or any(part.startswith(".") for part in name.parts)):
                contents.append(f"{name.as_posix()} {known_file(file).content}")
    return fingerprint(*contents)[:16]
