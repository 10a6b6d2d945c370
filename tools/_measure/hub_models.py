"""Small models with random weights: KerasHub's, Keras' and keras.io's transformer.

KerasHub's encoders that stand in larger backbones are public only in part; the others
are taken from `keras_hub.src`, as KerasHub 0.32 has them.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import layers

NUM_EXAMPLES, VOCABULARY, LENGTH, SIZE = 6, 31, 6, 32
Inputs = Any  # An array, or a dictionary or list of arrays.


def draw_inputs(model: keras.Model, name: str) -> Inputs:
    """Returns random inputs that a model of this module can take."""
    rng = np.random.default_rng(0)
    special = _SPECIAL_INPUTS.get(name, {})

    def draw(key: str, tensor: keras.KerasTensor) -> np.ndarray:
        if key in special:
            return np.asarray(special[key])
        sizes = (SIZE, SIZE, 3) if len(tensor.shape) == 4 else (LENGTH,) * 4
        shape = [
            size or other for size, other in zip(tensor.shape[1:], sizes, strict=False)
        ]
        shape = [NUM_EXAMPLES, *shape]
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if "mask" in key and "task" not in key:
            mask = np.ones(shape, dtype)
            mask[0, -1:] = 0
            return mask
        if "int" in dtype:
            most = 2 if "segment" in key or "label" in key else VOCABULARY
            return rng.integers(most > 2, most, shape).astype(dtype)
        return rng.normal(size=shape).astype(dtype)

    given = model.input
    if isinstance(given, dict):
        return {key: draw(key, tensor) for key, tensor in given.items()}
    if isinstance(given, (list, tuple)):
        return [draw(tensor.name, tensor) for tensor in given]
    return draw(given.name, given)


def _text_and_images(tokens: int, per_image: int, **more: Any) -> dict[str, Any]:
    """Inputs of text in which tokens stand for images."""
    indices = np.tile(np.arange(2, 2 + per_image), (NUM_EXAMPLES, 1))
    mask = np.zeros((NUM_EXAMPLES, tokens), "int32")
    mask[:, 2 : 2 + per_image] = 1
    ids = np.random.default_rng(1).integers(1, VOCABULARY, mask.shape)
    return {
        "token_ids": ids.astype("int32"),
        "padding_mask": np.ones_like(mask),
        "vision_mask": mask,
        "vision_indices": indices.astype("int32"),
        **more,
    }


def _uniform(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    return rng.uniform(size=(NUM_EXAMPLES, *shape)).astype("float32")


_POSITIONS = np.tile(np.arange(12, dtype="int32"), (NUM_EXAMPLES, 1))
_SPECIAL_INPUTS: dict[str, dict[str, Any]] = {
    "Gemma3Backbone": _text_and_images(12, 4, images=_uniform(1, 16, 16, 3)),
    "Gemma4Backbone": _text_and_images(
        12,
        4,
        pixel_values=_uniform(1, 16, 48),
        pixel_position_ids=np.ones((NUM_EXAMPLES, 1, 16, 2), "int32"),
        position_ids=_POSITIONS,
    ),
    "MoonshineBackbone": {
        "encoder_input_values": _uniform(1000, 1),
        "encoder_padding_mask": np.ones((NUM_EXAMPLES, 1000), "bool"),
    },
    "SAMBackbone": {
        "points": _uniform(1, 2),
        "labels": np.ones((NUM_EXAMPLES, 1), "float32"),
        "boxes": _uniform(1, 2, 2),
        "masks": np.zeros((NUM_EXAMPLES, 0, 16, 16, 1), "float32"),
    },
    "SAM3PromptableConceptBackbone": {
        "padding_mask": np.ones((NUM_EXAMPLES, LENGTH), "bool"),
        "boxes": _uniform(1, 5),
        "box_labels": np.ones((NUM_EXAMPLES, 1), "int32"),
    },
    "StableDiffusion3Backbone": {
        "num_steps": np.full(NUM_EXAMPLES, 2, "int32"),
        "guidance_scale": np.ones(NUM_EXAMPLES, "float32"),
    },
}

_MODULES = {
    "BLIP2QFormer": "blip2.blip2_qformer",
    "BLIP2VisionEncoder": "blip2.blip2_vision_encoder",
    "BLIP2CustomOPT": "blip2.blip2_custom_opt",
    "CLIPTextEncoder": "clip.clip_text_encoder",
    "CLIPVisionEncoder": "clip.clip_vision_encoder",
    "Gemma3VisionEncoder": "gemma3.gemma3_vision_encoder",
    "Gemma4VisionEncoder": "gemma4.gemma4_vision_encoder",
    "MetaCLIP2TextEncoder": "metaclip_2.metaclip_2_text_encoder",
    "MetaCLIP2VisionEncoder": "metaclip_2.metaclip_2_vision_encoder",
    "RQVAEBackbone": "rqvae.rqvae_backbone",
    "SAMMaskDecoder": "sam.sam_mask_decoder",
    "SAMPromptEncoder": "sam.sam_prompt_encoder",
    "SAM3DetrDecoder": "sam3.sam3_detr_decoder",
    "SAM3DetrEncoder": "sam3.sam3_detr_encoder",
    "SAM3GeometryEncoder": "sam3.sam3_geometry_encoder",
    "SAM3MaskDecoder": "sam3.sam3_mask_decoder",
    "SAM3TextEncoder": "sam3.sam3_text_encoder",
    "SAM3VisionEncoder": "sam3.sam3_vision_encoder",
    "SigLIPTextEncoder": "siglip.siglip_text_encoder",
    "SigLIPVisionEncoder": "siglip.siglip_vision_encoder",
    "VAEBackbone": "vae.vae_backbone",
}


def _make(kind: str, /, *args: Any, **kwargs: Any) -> Any:
    """Makes one of KerasHub's models or encoders."""
    models: Any = keras_hub.models
    if kind in _MODULES:
        models = importlib.import_module(f"keras_hub.src.models.{_MODULES[kind]}")
    return getattr(models, kind)(*args, **kwargs)


_TEXT: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
_HEADS: dict[str, Any] = {**_TEXT, "num_heads": 2}
_PLACES: dict[str, Any] = {**_HEADS, "max_sequence_length": LENGTH}
_QUERIES: dict[str, Any] = {**_TEXT, "num_query_heads": 4, "num_key_value_heads": 2}
_IMAGE = (SIZE, SIZE, 3)
_LINEAR_ATTENTION: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 4,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "top_k": 2}
_RESNET: dict[str, Any] = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 8, 8],
    "stackwise_num_blocks": [1, 1, 1],
    "stackwise_num_strides": [1, 2, 2],
    "block_type": "basic_block",
}
_MIT: dict[str, Any] = {
    "layerwise_depths": [1, 1],
    "image_shape": _IMAGE,
    "hidden_dims": [4, 8],
    "num_layers": 2,
    "layerwise_num_heads": [1, 2],
    "layerwise_sr_ratios": [8, 4],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3],
    "layerwise_strides": [4, 2],
}
_HGNET: dict[str, Any] = {
    "stem_channels": [3, 8, 8],
    "stackwise_stage_filters": [[8, 8, 16, 1, 1, 3], [16, 8, 32, 1, 1, 3]],
    "apply_downsample": [False, True],
    "use_lightweight_conv_block": [False, False],
    "depths": [1, 1],
    "hidden_sizes": [16, 32],
    "embedding_size": 8,
    "use_learnable_affine_block": True,
    "hidden_act": "relu",
    "image_shape": _IMAGE,
    "out_features": ["stage1", "stage2"],
}
_VIT: dict[str, Any] = {
    "image_shape": (8, 8, 3),
    "patch_size": 4,
    "num_layers": 2,
    "hidden_dim": 8,
    "num_heads": 2,
}
_VAE: dict[str, Any] = {
    "encoder_num_filters": [32, 32],
    "encoder_num_blocks": [1, 1],
    "decoder_num_filters": [32, 32],
    "decoder_num_blocks": [1, 1],
    "sampler_method": "mode",
}
_T5GEMMA: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    **{
        f"{part}_{key}": value
        for part in ("encoder", "decoder")
        for key, value in {
            "hidden_dim": 8,
            "intermediate_dim": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        }.items()
    },
    "sliding_window": 4,
    "cross_attention_hidden_size": 8,
}
_VISION: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
_MULTIMODAL: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "image_size": 16,
    "num_layers": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "head_dim": 4,
}


def _two_encoders(kind: str, **more: Any) -> keras.Model:
    """CLIP and models like it: patches of 8 in images of 16, 6 tokens."""
    vision = _make(
        f"{kind}VisionEncoder", 8, 16, 2, 2, 32, image_shape=(16, 16, 3), name="vision"
    )
    text = _make(
        f"{kind}TextEncoder",
        VOCABULARY,
        16,
        16,
        2,
        2,
        32,
        max_sequence_length=LENGTH,
        name="text",
    )
    return _make(f"{kind}Backbone", vision, text, **more)


def _blip2() -> keras.Model:
    vision = {**_VISION, "use_patch_bias": True, "use_class_token": True}
    vision |= {"use_mha_bias": True, "use_mlp_bias": True}
    vision |= {"dropout_rate": 0.0, "layer_norm_epsilon": 1e-6}
    queries = {"num_query_tokens": 2, "dropout": 0.0}
    return _make(
        "BLIP2Backbone",
        vision_encoder=_make("BLIP2VisionEncoder", initializer_range=0.02, **vision),
        qformer=_make(
            "BLIP2QFormer",
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            vision_dim=8,
            cross_attention_frequency=1,
            layer_norm_epsilon=1e-6,
            **queries,
        ),
        language_model=_make(
            "BLIP2CustomOPT",
            qformer_hidden_dim=8,
            language_projection=None,
            **queries,
            **{**_PLACES, "max_sequence_length": 10},
        ),
    )


def _dfine() -> keras.Model:
    return _make(
        "DFineBackbone",
        backbone=_make("HGNetV2Backbone", **_HGNET),
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=4,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(SIZE, SIZE),
        feat_strides=[4, 8],
        num_feature_levels=2,
        encoder_in_channels=[16, 32],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=16,
        num_lqe_layers=2,
        out_features=["stage1", "stage2"],
        image_shape=_IMAGE,
        seed=0,
    )


def _dino(kind: str, **more: Any) -> keras.Model:
    options = {"layer_scale_init_value": 1.0, "intermediate_dim": 16, **more}
    if kind == "V2":
        options |= {"position_embedding_shape": (126, 126, 3)}
    return _make(f"DINO{kind}Backbone", **{**_VIT, **options})


def _depth_anything() -> keras.Model:
    encoder = _dino(
        "V2",
        num_layers=4,
        patch_size=14,
        image_shape=(126, 126, 3),
        apply_layernorm=True,
        name="image_encoder",
    )
    return _make(
        "DepthAnythingBackbone",
        image_encoder=encoder,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[8, 8, 8, 8],
        fusion_hidden_dim=8,
        head_hidden_dim=8,
        head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )


def _gemma3n() -> keras.Model:
    return _make(
        "Gemma3nBackbone",
        text_vocab_size=VOCABULARY,
        text_hidden_size=8,
        num_hidden_layers=2,
        pad_token_id=0,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=[16, 16],
        hidden_activation="gelu_approximate",
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=4,
        rope_theta=10000.0,
        max_position_embeddings=LENGTH,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=2,
        altup_num_inputs=2,
        laurel_rank=1,
    )


def _mobilenet_v5() -> keras.Model:
    return _make(
        "MobileNetV5Backbone",
        stackwise_block_types=[["er"], ["uir", "uir"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [16, 16]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=[["relu"], ["relu", "relu"]],
        stackwise_exp_ratios=[[2.0], [2.0, 2.0]],
        stackwise_se_ratios=[[0.0], [0.0, 0.0]],
        stackwise_dw_kernel_sizes=[[0], [5, 5]],
        stackwise_dw_start_kernel_sizes=[[0], [0, 0]],
        stackwise_dw_end_kernel_sizes=[[0], [0, 0]],
        stackwise_exp_kernel_sizes=[[3], [0, 0]],
        stackwise_pw_kernel_sizes=[[1], [0, 0]],
        stackwise_num_heads=[[0], [0, 0]],
        stackwise_key_dims=[[0], [0, 0]],
        stackwise_value_dims=[[0], [0, 0]],
        stackwise_kv_strides=[[0], [0, 0]],
        stackwise_use_cpe=[[False], [False, False]],
        image_shape=_IMAGE,
        stem_size=8,
        use_msfa=False,
    )


def _mobilenet() -> keras.Model:
    return _make(
        "MobileNetBackbone",
        stackwise_expansion=[[8, 16], [16, 16]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[8, 8], [16, 16]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu"] * 2, ["hard_swish"] * 2, ["hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=32,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=8,
        image_shape=_IMAGE,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=32,
    )


def _sam() -> keras.Model:
    image = _make(
        "ViTDetBackbone",
        hidden_size=16,
        num_layers=2,
        intermediate_dim=32,
        num_heads=2,
        global_attention_layer_indices=[1],
        patch_size=16,
        num_output_channels=8,
        window_size=2,
        image_shape=(16, 16, 3),
    )
    prompt = _make(
        "SAMPromptEncoder",
        hidden_size=8,
        image_embedding_size=(8, 8),
        input_image_size=(16, 16),
        mask_in_channels=16,
    )
    mask = _make(
        "SAMMaskDecoder",
        num_layers=2,
        hidden_size=16,
        intermediate_dim=32,
        num_heads=8,
        embedding_dim=8,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=8,
    )
    return _make(
        "SAMBackbone", image_encoder=image, prompt_encoder=prompt, mask_decoder=mask
    )


def _sam3() -> keras.Model:
    size = {"num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32, "num_heads": 2}
    image = {"image_shape": (28, 28, 3), "patch_size": 14}
    return _make(
        "SAM3PromptableConceptBackbone",
        vision_encoder=_make(
            "SAM3VisionEncoder",
            **image,
            **size,
            fpn_hidden_dim=16,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(42, 42, 3),
            window_size=2,
            global_attn_indexes=[1, 2],
        ),
        text_encoder=_make(
            "SAM3TextEncoder", vocabulary_size=VOCABULARY, embedding_dim=16, **size
        ),
        geometry_encoder=_make("SAM3GeometryEncoder", roi_size=7, **size),
        detr_encoder=_make("SAM3DetrEncoder", **size),
        detr_decoder=_make("SAM3DetrDecoder", num_queries=8, **image, **size),
        mask_decoder=_make(
            "SAM3MaskDecoder", num_upsampling_stages=3, hidden_dim=16, num_heads=2
        ),
    )


def _stable_diffusion() -> keras.Model:
    text = functools.partial(_make, "CLIPTextEncoder", VOCABULARY)
    more = {"max_sequence_length": LENGTH}
    return _make(
        "StableDiffusion3Backbone",
        mmdit_patch_size=2,
        mmdit_hidden_dim=16,
        mmdit_num_layers=2,
        mmdit_num_heads=2,
        mmdit_position_size=192,
        mmdit_qk_norm=None,
        mmdit_dual_attention_indices=None,
        vae=_make(
            "VAEBackbone",
            [32] * 4,
            [1] * 4,
            [32] * 4,
            [1] * 4,
            sampler_method="mode",
            name="vae",
        ),
        clip_l=text(16, 16, 2, 2, 32, "quick_gelu", -2, name="clip_l", **more),
        clip_g=text(16, 16, 2, 2, 32, "gelu", -2, name="clip_g", **more),
        image_shape=(16, 16, 3),
    )


def _flux() -> keras.Model:
    return _make(
        "FluxBackbone",
        input_channels=8,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[4, 6, 6],
        theta=10_000,
        use_bias=True,
        guidance_embed=True,
        image_shape=(4, 8),
        text_shape=(4, 8),
        image_ids_shape=(4, 3),
        text_ids_shape=(4, 3),
        y_shape=(8,),
    )


def _efficientnet() -> keras.Model:
    return _make(
        "EfficientNetBackbone",
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["fused", "unfused"],
        stackwise_force_input_filters=[0, 0],
        stackwise_nores_option=[False, False],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stem_filters=8,
        image_shape=_IMAGE,
    )


def _parseq() -> keras.Model:
    encoder = _make(
        "ViTBackbone",
        **{**_VIT, "patch_size": (4, 4)},
        mlp_dim=16,
        use_class_token=False,
        name="image_encoder",
    )
    return _make(
        "PARSeqBackbone",
        image_encoder=encoder,
        vocabulary_size=VOCABULARY,
        max_label_length=LENGTH,
        decoder_hidden_dim=8,
        num_decoder_layers=1,
        num_decoder_heads=2,
        decoder_mlp_dim=16,
    )


@keras.saving.register_keras_serializable(package="keras_psp_tools")
class TransformerBlock(layers.Layer):
    """keras.io's block of "Text classification with Transformer", with a config."""

    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {"embed_dim": embed_dim, "num_heads": num_heads}
        self.arguments |= {"ff_dim": ff_dim, "rate": rate}
        self.att = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.ffn = keras.Sequential(
            [layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)]
        )
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, inputs):
        attention = self.dropout1(self.att(inputs, inputs))
        hidden = self.layernorm1(inputs + attention)
        return self.layernorm2(hidden + self.dropout2(self.ffn(hidden)))

    def get_config(self):
        return {**super().get_config(), **self.arguments}


@keras.saving.register_keras_serializable(package="keras_psp_tools")
class TokenAndPositionEmbedding(layers.Layer):
    """keras.io's embedding of the same example."""

    def __init__(self, maxlen, vocab_size, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {"maxlen": maxlen, "vocab_size": vocab_size}
        self.arguments |= {"embed_dim": embed_dim}
        self.token_emb = layers.Embedding(vocab_size, embed_dim)
        self.pos_emb = layers.Embedding(maxlen, embed_dim)

    def call(self, x):
        positions = keras.ops.arange(0, keras.ops.shape(x)[-1], 1)
        return self.token_emb(x) + self.pos_emb(positions)

    def get_config(self):
        return {**super().get_config(), **self.arguments}


def _keras_io() -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32", name="tokens")
    x = TokenAndPositionEmbedding(LENGTH, VOCABULARY, 8)(inputs)
    x = TransformerBlock(8, 2, 16)(x)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
    x = layers.Dense(20, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


def _application(name: str) -> keras.Model:
    options = {"input_shape": _IMAGE, "weights": None, "classes": 4}
    return getattr(keras.applications, name)(**options)


def _task(name: str, backbone: str, **more: Any) -> keras.Model:
    return _make(name, backbone=MODELS[backbone](), **more)


def _backbones() -> dict[str, Callable[[], keras.Model]]:
    """The backbones that take nothing but numbers, and the others."""
    moe = {**_QUERIES, "head_dim": 2, "moe_intermediate_dim": 8, **_EXPERTS}
    shared = {"shared_expert_intermediate_dim": 8}
    rwkv = {"gate_lora": 4, "mv_lora": 4, "aaa_lora": 4, "decay_lora": 4}
    electra = {k: v for k, v in _PLACES.items() if k != "vocabulary_size"}
    long = {**_TEXT, "max_encoder_sequence_length": LENGTH}
    moonshine = {"filter_dim": 8, "encoder_num_layers": 1, "decoder_num_layers": 1}
    options: dict[str, dict[str, Any]] = {
        "AlbertBackbone": {
            **_PLACES,
            "num_groups": 1,
            "num_inner_repetitions": 1,
            "embedding_dim": 8,
        },
        "BartBackbone": _PLACES,
        "BertBackbone": _PLACES,
        "BloomBackbone": _HEADS,
        "CSPNetBackbone": {
            "stem_filters": 8,
            "stem_kernel_size": 3,
            "stem_strides": 1,
            "stackwise_strides": 2,
            "stackwise_depth": [1, 2],
            "stackwise_num_filters": [16, 16],
            "image_shape": _IMAGE,
            "down_growth": True,
            "bottle_ratio": (0.5, 1.0),
            "block_ratio": (1.0, 0.5),
            "expand_ratio": (2.0, 1.0),
            "block_type": "dark_block",
            "stage_type": "csp",
            "stem_padding": "same",
        },
        "DebertaV3Backbone": _PLACES,
        "DeiTBackbone": {**_VIT, "intermediate_dim": 16},
        "DenseNetBackbone": {
            "stackwise_num_repeats": [1, 2],
            "compression_ratio": 0.5,
            "growth_rate": 2,
            "image_shape": _IMAGE,
        },
        "DistilBertBackbone": _PLACES,
        "EdRecBackbone": {
            "vocab_size": VOCABULARY,
            "num_layers_enc": 2,
            "num_layers_dec": 2,
            "num_heads": 2,
            "hidden_dim": 8,
            "intermediate_dim": 16,
        },
        "ElectraBackbone": {
            **electra,
            "vocab_size": VOCABULARY,
            "embedding_dim": 4,
        },
        "ESMBackbone": _HEADS,
        "FNetBackbone": {**_TEXT, "max_sequence_length": LENGTH},
        "FalconBackbone": {**_TEXT, "num_attention_heads": 2},
        "GemmaBackbone": {**_QUERIES, "head_dim": 4},
        "GPT2Backbone": _PLACES,
        "GPTNeoXBackbone": {**_HEADS, "rotary_percentage": 0.5},
        "GptOssBackbone": {**_QUERIES, **_EXPERTS, "sliding_window": 2},
        "HGNetV2Backbone": _HGNET,
        "LlamaBackbone": _QUERIES,
        "Llama3Backbone": _QUERIES,
        "MiTBackbone": _MIT,
        "MistralBackbone": {**_QUERIES, "sliding_window": 2},
        "MixtralBackbone": {**_QUERIES, **_EXPERTS, "sliding_window": 2},
        "MoonshineBackbone": {
            **moonshine,
            "vocabulary_size": VOCABULARY,
            "hidden_dim": 8,
            "intermediate_dim": 16,
            "encoder_num_heads": 2,
            "decoder_num_heads": 2,
        },
        "OPTBackbone": _PLACES,
        "PaliGemmaBackbone": {
            **_MULTIMODAL,
            "vit_patch_size": 4,
            "vit_num_layers": 1,
            "vit_num_heads": 2,
            "vit_hidden_dim": 8,
            "vit_intermediate_dim": 16,
        },
        "Phi3Backbone": _QUERIES,
        "QwenBackbone": _QUERIES,
        "QwenMoeBackbone": {
            **{k: v for k, v in moe.items() if k != "head_dim"},
            **shared,
        },
        "Qwen3Backbone": {**_QUERIES, "head_dim": 2},
        "Qwen3MoeBackbone": moe,
        "Qwen3_5Backbone": {**_QUERIES, "head_dim": 8, **_LINEAR_ATTENTION},
        "Qwen3_5MoeBackbone": {
            **{k: v for k, v in moe.items() if k != "intermediate_dim"},
            **_LINEAR_ATTENTION,
            "head_dim": 8,
            "shared_expert_intermediate_size": 8,
        },
        "ResNetBackbone": {**_RESNET, "image_shape": _IMAGE},
        "RobertaBackbone": _PLACES,
        "RoformerV2Backbone": {**_HEADS, "head_size": 4},
        "RQVAEBackbone": {
            "input_dim": 16,
            "encoder_layer_dims": [16],
            "output_dim": 8,
            "decoder_layer_dims": [16],
            "num_embeddings": 4,
            "num_quantizers": 2,
            "decay": 0.99,
            "data_variance": 1.0,
            "commitment_cost": 0.25,
        },
        "RWKV7Backbone": {
            "vocabulary_size": VOCABULARY,
            "hidden_size": 16,
            "num_layers": 2,
            "head_size": 4,
            "intermediate_dim": 16,
            **rwkv,
        },
        "SmolLM3Backbone": {
            **_TEXT,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rope_layer_enabled_list": [True, True],
            "layer_types": ["attention", "attention"],
            "mlp_bias": False,
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": 32,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        },
        "SwinTransformerBackbone": {
            "image_shape": _IMAGE,
            "embed_dim": 8,
            "depths": (1, 1),
            "num_heads": (2, 4),
            "window_size": 4,
        },
        "T5Backbone": _HEADS,
        "T5GemmaBackbone": _T5GEMMA,
        "T5Gemma2Backbone": {**_T5GEMMA, "use_query_key_norm": True},
        "VAEBackbone": {**_VAE, "image_shape": (16, 16, 3)},
        "VGGBackbone": {
            "stackwise_num_repeats": [1, 2],
            "stackwise_num_filters": [4, 8],
            "image_shape": (16, 16, 3),
        },
        "VideoPrismBackbone": {
            "image_shape": (8, 8, 3),
            "num_frames": 2,
            "patch_size": 4,
            "hidden_dim": 8,
            "intermediate_dim": 16,
            "num_heads": 2,
            "num_spatial_layers": 1,
            "num_temporal_layers": 1,
            "num_auxiliary_layers": 1,
            "vocabulary_size": 0,
            "num_text_layers": 0,
        },
        "ViTBackbone": {**_VIT, "patch_size": (4, 4), "mlp_dim": 16},
        "ViTDetBackbone": {
            "image_shape": (16, 16, 3),
            "patch_size": 2,
            "hidden_size": 8,
            "num_layers": 2,
            "global_attention_layer_indices": [1],
            "intermediate_dim": 16,
            "num_heads": 2,
            "num_output_channels": 4,
            "window_size": 2,
        },
        "WhisperBackbone": {
            **{**long, "num_heads": 2, "max_decoder_sequence_length": LENGTH}
        },
        "XceptionBackbone": {
            "stackwise_conv_filters": [[8, 8], [16, 16]],
            "stackwise_pooling": [False, True],
            "image_shape": _IMAGE,
        },
        "XLMRobertaBackbone": _PLACES,
        "XLNetBackbone": _HEADS,
    }
    made = {
        name: functools.partial(_make, name, **given) for name, given in options.items()
    }
    made |= {
        "BASNetBackbone": lambda: _make(
            "BASNetBackbone",
            image_encoder=_make(
                "ResNetBackbone",
                **{
                    **_RESNET,
                    "stackwise_num_filters": [64, 128, 256, 512],
                    "stackwise_num_blocks": [1] * 4,
                    "stackwise_num_strides": [1, 2, 2, 2],
                },
            ),
            num_classes=1,
            image_shape=_IMAGE,
        ),
        "BLIP2Backbone": _blip2,
        "CLIPBackbone": lambda: _two_encoders("CLIP", projection_dim=8),
        "DFineBackbone": _dfine,
        "DINOV2Backbone": lambda: _dino("V2"),
        "DINOV3Backbone": lambda: _dino("V3", num_register_tokens=2),
        "DeepLabV3Backbone": lambda: _make(
            "DeepLabV3Backbone",
            image_encoder=_make("ResNetBackbone", **_RESNET),
            low_level_feature_key="P2",
            spatial_pyramid_pooling_key="P4",
            dilation_rates=[6, 12, 18],
            upsampling_size=4,
            image_shape=_IMAGE,
        ),
        "DepthAnythingBackbone": _depth_anything,
        "EfficientNetBackbone": _efficientnet,
        "FluxBackbone": _flux,
        "Gemma3Backbone": lambda: _make(
            "Gemma3Backbone",
            **_MULTIMODAL,
            vision_encoder=_make(
                "Gemma3VisionEncoder", pool_size=2, output_dim=8, **_VISION
            ),
        ),
        "Gemma3nBackbone": _gemma3n,
        "Gemma4Backbone": lambda: _make(
            "Gemma4Backbone",
            **_MULTIMODAL,
            vision_encoder=_make(
                "Gemma4VisionEncoder",
                pool_size=2,
                output_dim=8,
                head_dim=4,
                num_key_value_heads=2,
                **_VISION,
            ),
        ),
        "MetaCLIP2Backbone": lambda: _two_encoders("MetaCLIP2", projection_dim=8),
        "MobileNetBackbone": _mobilenet,
        "MobileNetV5Backbone": _mobilenet_v5,
        "PARSeqBackbone": _parseq,
        "RetinaNetBackbone": lambda: _make(
            "RetinaNetBackbone",
            image_encoder=_make(
                "ResNetBackbone",
                **{
                    **_RESNET,
                    "stackwise_num_filters": [64, 8, 8, 8],
                    "stackwise_num_blocks": [1] * 4,
                    "stackwise_num_strides": [1, 2, 2, 2],
                },
            ),
            min_level=3,
            max_level=7,
            use_p5=True,
            image_shape=(128, 128, 3),
        ),
        "SAMBackbone": _sam,
        "SAM3PromptableConceptBackbone": _sam3,
        "SegFormerBackbone": lambda: _make(
            "SegFormerBackbone",
            projection_filters=8,
            image_encoder=_make("MiTBackbone", **_MIT),
        ),
        "SigLIPBackbone": lambda: _two_encoders("SigLIP"),
        "StableDiffusion3Backbone": _stable_diffusion,
    }
    large = {"BASNetBackbone": made.pop("BASNetBackbone")}  # None is smaller.
    return dict(sorted(made.items(), key=lambda item: item[0].lower())) | large


_PLAIN_TASK: dict[str, Any] = {"preprocessor": None}
MODELS: dict[str, Callable[[], keras.Model]] = {
    **_backbones(),
    "BertTextClassifier": lambda: _task(
        "BertTextClassifier", "BertBackbone", num_classes=3, **_PLAIN_TASK
    ),
    "RobertaTextClassifier": lambda: _task(
        "RobertaTextClassifier", "RobertaBackbone", num_classes=3, **_PLAIN_TASK
    ),
    "BertMaskedLM": lambda: _task("BertMaskedLM", "BertBackbone", **_PLAIN_TASK),
    "GPT2CausalLM": lambda: _task("GPT2CausalLM", "GPT2Backbone", **_PLAIN_TASK),
    "Llama3CausalLM": lambda: _task("Llama3CausalLM", "Llama3Backbone", **_PLAIN_TASK),
    "GemmaCausalLM": lambda: _task("GemmaCausalLM", "GemmaBackbone", **_PLAIN_TASK),
    "ResNetImageClassifier": lambda: _task(
        "ResNetImageClassifier", "ResNetBackbone", num_classes=3, **_PLAIN_TASK
    ),
    "ViTImageClassifier": lambda: _task(
        "ViTImageClassifier", "ViTBackbone", num_classes=3, **_PLAIN_TASK
    ),
    "applications.MobileNetV2": lambda: _application("MobileNetV2"),
    "applications.EfficientNetB0": lambda: _application("EfficientNetB0"),
    "applications.ResNet50": lambda: _application("ResNet50"),
    "keras.io transformer": _keras_io,
}
