"""What a process of its own does with a saved token classifier where the package is not: loads it by the code
in its folder, and prints logits and entities as JSON.
"""

import json
import sys

from support.portability_checks import hide_package


def answers(folder: str, texts: list[str], **remote: bool) -> dict:
    """Logits of a text, and entities of all, of the model in a folder."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    torch.set_num_threads(1)
    model = AutoModelForTokenClassification.from_pretrained(folder, **remote).eval()
    inputs = AutoTokenizer.from_pretrained(folder, **remote)(texts[0], return_tensors="pt")
    find = pipeline("early-exit-token-classification", model=folder, aggregation_strategy="first", **remote)
    assert pipeline(model=folder, **remote).task == "early-exit-token-classification"
    with torch.no_grad():
        logits = model(**inputs).exit_logits
    found = find(texts)
    return {
        "logits": logits.tolist(),
        "entities": [[{**entity, "score": float(entity["score"])} for entity in one] for one in found],
    }


if __name__ == "__main__":
    hide_package()
    told = answers(sys.argv[1], json.loads(sys.argv[2]), trust_remote_code=True)
    assert not any(name.startswith("modeling_romebert") for name in sys.modules)
    print("RESULT " + json.dumps(told))
