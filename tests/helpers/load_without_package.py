"""Loads saved folders where the package is not, and prints what the models make of some texts.

python -I tests/helpers/load_without_package.py EXAMPLES THREADS FOLDER...
"""

import json
import sys

sys.path.insert(0, sys.argv[1])

import portability_checks

if __name__ == "__main__":
    portability_checks.hide_package()
    portability_checks.package_is_absent()

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(int(sys.argv[2]))
    found = {}
    for folder in sys.argv[3:]:
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        found[folder] = portability_checks.measure(model, tokenizer)
    print("FOUND " + json.dumps(found))
