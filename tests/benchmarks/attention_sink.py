"""How much of its content a single token keeps, by its length: why recipes set ``token_norm``.

    python tests/benchmarks/attention_sink.py

projects the starter corpus's embeddings with projections that start at different token lengths, and sends them through
the bundled backbone. Prints one JSON line per length: the mean cosine between the final hidden states of different
texts (1 = no content is left), and the greatest length in the residual stream.
"""

from __future__ import annotations

import json

import torch

from modeling.backbones import load_frozen_backbone
from modeling.infer import BUNDLED_BACKBONE, build_projection, load_encoder
from training.data.corpus import load_corpus
from training.fit.projection import standardize_projection

TEXTS = 200


@torch.inference_mode()
def main() -> None:
    texts = load_corpus("starter", ["goemotions-28"])["train"].texts[:TEXTS]
    embeddings = load_encoder("use-multilingual-v3")(texts)
    backbone = load_frozen_backbone(BUNDLED_BACKBONE, None, "none", "cpu")
    table = backbone.get_input_embeddings().weight
    print(json.dumps({"figure": "vocabulary_token_norm", "mean": table.norm(dim=1).mean().item()}))
    for prefix in ("none", "bos"):
        for norm in (3, 30, 96, 300, 960):
            torch.manual_seed(0)
            projection = build_projection(embeddings.shape[1], table.shape[1])
            standardize_projection(projection, embeddings, norm, seed=0)
            tokens = projection(torch.from_numpy(embeddings)).unsqueeze(1)
            if prefix == "bos":
                tokens = torch.cat([table[backbone.config.bos_token_id].expand_as(tokens), tokens], dim=1)
            states = backbone(inputs_embeds=tokens, output_hidden_states=True, use_cache=False).hidden_states
            last = torch.nn.functional.normalize(states[-1][:, -1], dim=1)
            cosine = (last @ last.T).sum().sub(len(last)) / (len(last) * (len(last) - 1))
            longest = max(state[:, -1].norm(dim=1).mean().item() for state in states[:-1])
            line = {"figure": "attention_sink", "prefix": prefix, "token_norm": norm}
            print(json.dumps({**line, "mean_cosine": cosine.item(), "longest_hidden_state": longest}), flush=True)


if __name__ == "__main__":
    main()
