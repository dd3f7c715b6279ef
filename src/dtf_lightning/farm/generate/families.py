"""Which family a model is of, with the rule that says so. Pure.

Rules that this file guards, in this order:
1. The head at the end of `architectures` says it, unless that head is used by several families.
2. Nested configs of two modalities are a multimodal model.
3. The model's type says it, by the table of types.
4. A timm name is a vision model.
5. A census of modules, or of an ONNX graph's nodes, is a guess.
6. Otherwise the family is unknown: the user is to say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtf_lightning.farm.generate.description import Family, FamilyFound

HEADS: Mapping[str, Family] = {
    "ForMaskedLM": Family.TEXT_ENCODER,
    "ForSequenceClassification": Family.TEXT_ENCODER,
    "ForTokenClassification": Family.TEXT_ENCODER,
    "ForMultipleChoice": Family.TEXT_ENCODER,
    "ForNextSentencePrediction": Family.TEXT_ENCODER,
    "ForQuestionAnswering": Family.TEXT_ENCODER,
    "ForCausalLM": Family.TEXT_GENERATION,
    "LMHeadModel": Family.TEXT_GENERATION,
    "ForImageClassification": Family.VISION,
    "ForImageClassificationWithTeacher": Family.VISION,
    "ForMaskedImageModeling": Family.VISION,
    "ForVideoClassification": Family.VISION,
    "Backbone": Family.VISION,
    "ForObjectDetection": Family.DENSE_VISION,
    "ForSemanticSegmentation": Family.DENSE_VISION,
    "ForInstanceSegmentation": Family.DENSE_VISION,
    "ForUniversalSegmentation": Family.DENSE_VISION,
    "ForDepthEstimation": Family.DENSE_VISION,
    "ForCTC": Family.AUDIO,
    "ForAudioClassification": Family.AUDIO,
    "ForAudioFrameClassification": Family.AUDIO,
    "ForXVector": Family.AUDIO,
    "ForSpeechSeq2Seq": Family.SPEECH_TO_TEXT,
    "ForZeroShotImageClassification": Family.MULTIMODAL,
    "ForZeroShotObjectDetection": Family.MULTIMODAL,
    "ForVisualQuestionAnswering": Family.MULTIMODAL,
    "ForImageTextToText": Family.MULTIMODAL,
    "ForImageAndTextRetrieval": Family.MULTIMODAL,
    "ForPrediction": Family.TIME_SERIES,
}
"""The end of a class's name in transformers -> family. Heads that several families share (`ForPreTraining`, `Model`,
`ForConditionalGeneration`) are not here."""

_TYPES: Mapping[Family, str] = {
    Family.TEXT_ENCODER: (
        "albert bert big_bird camembert canine convbert deberta deberta-v2 distilbert electra ernie esm flaubert fnet funnel "
        "ibert longformer luke megatron-bert mobilebert modernbert mpnet mra nezha nomic_bert nystromformer qdqbert rembert "
        "roberta roberta-prelayernorm roc_bert roformer splinter squeezebert tapas xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso"
    ),
    Family.TEXT_GENERATION: (
        "bamba biogpt bloom bitnet codegen cohere cohere2 ctrl dbrx deepseek_v2 deepseek_v3 exaone4 falcon falcon_mamba gemma "
        "gemma2 gemma3_text git-base glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite "
        "granitemoe helium jamba jetmoe llama llama4_text mamba mamba2 minimax mistral mixtral mpt nemotron olmo olmo2 olmoe "
        "openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe recurrent_gemma reformer rwkv smollm3 "
        "stablelm starcoder2 xglm zamba zamba2"
    ),
    Family.TEXT_TO_TEXT: (
        "bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe "
        "pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5 xlm-prophetnet"
    ),
    Family.VISION: (
        "beit bit convnext convnextv2 cvt data2vec-vision deit dinat dinov2 dinov2_with_registers dinov3_vit efficientformer "
        "efficientnet focalnet hiera ijepa imagegpt levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 nat poolformer pvt "
        "pvt_v2 regnet resnet swiftformer swin swin2sr swinv2 textnet timesformer timm_wrapper van videomae vit vit_hybrid "
        "vit_mae vit_msn vivit vjepa2"
    ),
    Family.DENSE_VISION: (
        "conditional_detr d_fine dab-detr deformable_detr depth_anything depth_pro deta detr dpt glpn mask2former maskformer "
        "rt_detr rt_detr_v2 sam segformer seggpt superglue superpoint table-transformer upernet vitmatte vitpose yolos zoedepth"
    ),
    Family.AUDIO: (
        "audio-spectrogram-transformer bark clap_audio dac data2vec-audio encodec fastspeech2_conformer hubert mctct mimi sew "
        "sew-d unispeech unispeech-sat univnet vits wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm"
    ),
    Family.SPEECH_TO_TEXT: "moonshine seamless_m4t seamless_m4t_v2 speech-encoder-decoder speech_to_text speecht5 whisper",
    Family.MULTIMODAL: (
        "align altclip aria aya_vision bridgetower blip blip-2 bros chameleon chinese_clip clap clip clipseg colpali donut "
        "emu3 flava florence2 fuyu gemma3 git got_ocr2 groupvit grounding-dino idefics idefics2 idefics3 instructblip "
        "internvl janus kosmos-2 layoutlm layoutlmv2 layoutlmv3 lilt llama4 llava llava_next llava_onevision lxmert mgp-str "
        "mistral3 mllama omdet-turbo owlv2 owlvit paligemma perceiver pix2struct pixtral qwen2_5_vl qwen2_audio qwen2_vl siglip "
        "siglip2 smolvlm trocr tvlt tvp udop video_llava vilt vision-encoder-decoder vision-text-dual-encoder visual_bert "
        "x-clip"
    ),
    Family.TIME_SERIES: "autoformer informer patchtsmixer patchtst time_series_transformer timesfm",
}

TYPES: Mapping[str, Family] = {name: family for family, names in _TYPES.items() for name in names.split()}
"""`model_type` of a transformers config -> family."""

_SHARED_HEAD = "ForConditionalGeneration"
"""Of models that write text, from text, speech or pictures."""
_SIGHT = ("vision_config", "vision_tower", "mm_vision_tower", "qformer_config", "vision_encoder")
_HEARING = ("audio_config", "audio_encoder")
_WORDS = ("text_config", "text_encoder", "language_config", "llm_config", "text_model")
_SPECTRUM = ("num_mel_bins", "input_feat_per_channel")
"""Keys of a config by which a model hears speech."""


def family_of_config(config: Mapping[str, Any]) -> FamilyFound:
    """Return the family of a transformers config, as its JSON says it."""
    architecture = next(iter(config.get("architectures") or ()), "")
    kind = str(config.get("model_type", ""))
    by_type = TYPES.get(kind)
    nested = _nested(config)
    head = next((one for one in sorted(HEADS, key=len, reverse=True) if architecture.endswith(one)), "")
    if head:
        family = HEADS[head]
        if family in (Family.TEXT_ENCODER, Family.TEXT_GENERATION) and (nested or by_type is Family.MULTIMODAL):
            why = nested or f"the type {kind!r} is in the table"
            return _found(Family.MULTIMODAL, f"{architecture} writes text, and {why}", 0.95)
        return _found(family, f"{architecture} ends with {head}", 0.98)
    if nested:
        return _found(Family.MULTIMODAL, nested, 0.97)
    if architecture.endswith(_SHARED_HEAD):
        if by_type is not None:
            return _found(by_type, f"{architecture} ends with {_SHARED_HEAD}, and {kind!r} is in the table", 0.95)
        if spectrum := next((key for key in _SPECTRUM if key in config), ""):
            told = f"{architecture} ends with {_SHARED_HEAD}, and the config has {spectrum}"
            return _found(Family.SPEECH_TO_TEXT, told, 0.85)
        return _found(Family.TEXT_TO_TEXT, f"{architecture} ends with {_SHARED_HEAD}", 0.8)
    if by_type is not None:
        return _found(by_type, f"the type {kind!r} is in the table", 0.9)
    return _found(Family.UNKNOWN, "neither `architectures` nor `model_type` is known", 0.0)


def _nested(config: Mapping[str, Any]) -> str:
    """Say which nested configs make it a multimodal one; "" if none do."""
    others = [key for key in (*_SIGHT, *_HEARING) if config.get(key)]
    words = [key for key in _WORDS if config.get(key)]
    if others and (words or others[0] in _SIGHT):
        return f"the config has {' and '.join([*others[:1], *words[:1]])}"
    return ""


def family_of_timm(name: str) -> FamilyFound:
    """Return the family of a model that timm has."""
    return _found(Family.VISION, f"timm has {name!r}, and its models look at images", 0.95)


_RECURRENT = ("LSTM", "GRU", "RNN", "RNNBase")
_ATTENTION = ("MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer")


def family_of_census(census: Mapping[str, int]) -> FamilyFound:
    """Return the family of a module, from how many modules of each class it has."""

    def count(*names: str) -> int:
        return sum(census.get(name, 0) for name in names)

    if count("Transformer") or (count("TransformerDecoderLayer") and count("TransformerEncoderLayer")):
        return _guess(Family.TEXT_TO_TEXT, census, "Transformer", "TransformerDecoderLayer", confidence=0.6)
    if count("Embedding") and count(*_ATTENTION):
        return _guess(Family.TEXT_ENCODER, census, "Embedding", *_ATTENTION, confidence=0.6)
    if count(*_RECURRENT):
        return _guess(Family.RECURRENT, census, *_RECURRENT, confidence=0.7)
    if count("ConvTranspose2d", "Upsample"):
        return _guess(Family.DENSE_VISION, census, "ConvTranspose2d", "Upsample", confidence=0.6)
    if count("Conv2d", "Conv3d"):
        return _guess(Family.VISION, census, "Conv2d", "Conv3d", confidence=0.7)
    if count("Conv1d"):
        return _guess(Family.AUDIO, census, "Conv1d", confidence=0.4)
    if count("Embedding"):
        return _guess(Family.TEXT_ENCODER, census, "Embedding", confidence=0.4)
    if count("Linear", "Bilinear"):
        return _guess(Family.FEED_FORWARD, census, "Linear", "Bilinear", confidence=0.6)
    return _found(Family.UNKNOWN, "it has no layers that tell", 0.0)


_NODES = {
    "LSTM": "LSTM", "GRU": "GRU", "RNN": "RNN", "Attention": "MultiheadAttention", "MultiHeadAttention": "MultiheadAttention",
    "ConvTranspose": "ConvTranspose2d", "Resize": "Upsample", "Gather": "Embedding", "Gemm": "Linear", "MatMul": "Linear",
}  # fmt: skip
"""An ONNX operator -> the module that it is most like."""


def family_of_nodes(nodes: Mapping[str, int], *, takes_integers: bool, rank: int) -> FamilyFound:
    """Return the family of an ONNX graph.

    Args:
        nodes: how many nodes of each operator it has.
        takes_integers: whether its first input is of integers, such as words.
        rank: dimensions of its first input, the batch among them.
    """
    census: dict[str, int] = {}
    for operator, number in nodes.items():
        if operator == "Conv":
            name = {3: "Conv1d", 5: "Conv3d"}.get(rank, "Conv2d")
        else:
            name = _NODES.get(operator, operator)
        if name == "Embedding" and not takes_integers:
            continue
        census[name] = census.get(name, 0) + number
    if takes_integers and nodes.get("Softmax") and nodes.get("MatMul"):
        census["MultiheadAttention"] = nodes["Softmax"]
    return family_of_census(census)


def _guess(family: Family, census: Mapping[str, int], *names: str, confidence: float) -> FamilyFound:
    there = ", ".join(f"{census[name]} {name}" for name in names if census.get(name))
    return _found(family, f"it has {there}", confidence)


def said(family: str) -> FamilyFound:
    """Return the family that the user says. Raises `ValueError` for none."""
    return _found(Family(family), "it was said", 1.0)


def _found(family: Family, rule: str, confidence: float) -> FamilyFound:
    return FamilyFound(family=family, rule=rule, confidence=confidence)
