"""One decode step of absorbed multi-head latent attention over a paged cache, in plain PyTorch (DeepSeek-V2, 2.1.2).

B = rows, H = heads, C = kv_lora_rank, R = qk_rope_head_dim, N = pages in the pool, S = positions of a page, P = pages
of a row's table.
"""

import torch


def mla_decode(
    q_latent_BHC: torch.Tensor,
    q_pe_BHR: torch.Tensor,
    kv_cache_NSC: torch.Tensor,
    pe_cache_NSR: torch.Tensor,
    block_table_BP: torch.Tensor,
    lengths_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """context_b = sum over j < length_b of softmax_j(scale (q_latent_b . kv_j + q_pe_b . pe_j)) kv_j, for every head.

    q_latent [B, H, C]: the query times the key half of kv_b (absorbed), so that scores and sums are over the latents
    themselves; the value half of kv_b is to be applied to the result. kv_cache [N, S, C], pe_cache [N, S, R]: position
    j of row b lies in page block_table[b, j // S] (int32 [B, P]) at j % S. lengths: int32 [B], what the row may see,
    the newest token included; 0 gives zeros. Returns [B, H, C]; softmax in at least fp32.
    """
    page_size = kv_cache_NSC.shape[1]
    rows = []
    for b, length in enumerate(lengths_B.tolist()):
        pages = block_table_BP[b, : -(-length // page_size)].long()
        kv_TC = kv_cache_NSC[pages].flatten(0, 1)[:length]
        pe_TR = pe_cache_NSR[pages].flatten(0, 1)[:length]
        scores_HT = q_latent_BHC[b] @ kv_TC.t() + q_pe_BHR[b] @ pe_TR.t()
        scores_HT = scores_HT.to(torch.promote_types(scores_HT.dtype, torch.float32)) * scale
        rows.append(scores_HT.softmax(-1).to(kv_TC.dtype) @ kv_TC)
    return torch.stack(rows) if rows else torch.zeros_like(q_latent_BHC)
