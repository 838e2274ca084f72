"""For the tests of Flux."""

import pytest
import torch


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Small encoders of transformers and diffusers with random weights."""
    from diffusers import AutoencoderKL
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    words = {word: at for at, word in enumerate(["<pad>", "<end>", "a", "red", "blue", "circle"])}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", model_max_length=7
    )
    t5 = T5EncoderModel(T5Config(vocab_size=6, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=6, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=7, eos_token_id=1, bos_token_id=2,
    ))  # fmt: skip
    autoencoder = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=3, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    for name, model in {"t5": t5, "clip": clip, "autoencoder": autoencoder}.items():
        model.eval().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder, t5, clip, autoencoder
