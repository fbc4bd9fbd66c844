// Drafts of the multi-token-prediction module and their verification: part of decode_step.cpp, on top of its network and
// sampling. The truth is reference/speculative_step.py, which also says why the result is what no drafts would give.
#pragma once

// One thread's drafts for one block of requests, and scratch memory.
struct Drafts {
  int most, size;                       // rows that fit; drafts a request
  std::vector<int32_t> count, token;    // [requests], [requests][size]
  std::vector<int32_t> slot, fed, position;  // rows
  std::vector<float> states, joined;    // [rows][hidden], [rows][2 * hidden]

  Drafts(const R1Model& model, int most, int size) : most(most), size(size) {
    if (!size) return;
    for (auto* rows : {&count, &slot, &fed, &position}) rows->resize(most);
    token.resize(static_cast<size_t>(most) * size);
    states.resize(static_cast<size_t>(most) * model.hidden);
    joined.resize(static_cast<size_t>(most) * 2 * model.hidden);
  }
};

// ws.x = eh_proj [enorm(embedding of drafts.fed); hnorm(drafts.states)]: DeepSeek-V3, eq. 21.
void mtp_input(const R1Model& model, int rows, Drafts& drafts, Workspace& ws) {
  const R1Mtp& mtp = *model.mtp;
  const int hidden = model.hidden;
  for (int m = 0; m < rows; ++m)
    rms_norm(model.embed + static_cast<size_t>(drafts.fed[m]) * hidden, hidden, mtp.enorm, model.eps, hidden,
             drafts.joined.data() + static_cast<size_t>(m) * 2 * hidden, 2 * hidden, 1);
  rms_norm(drafts.states.data(), hidden, mtp.hnorm, model.eps, hidden, drafts.joined.data() + hidden, 2 * hidden, rows);
  gemm(drafts.joined.data(), 2 * hidden, mtp.eh_proj, 2 * hidden, hidden, nullptr, ws.x.data(), hidden, rows);
}

// Rows whose prediction nobody reads: only their latents go into the module's cache.
void mtp_fill_cache(const R1Model& model, int rows, Drafts& drafts, Workspace& ws) {
  mtp_input(model, rows, drafts, ws);
  const int stride = project_qkv(model, model.layers[model.num_layers], rows, ws);
  append_cache(model, model.num_layers, ws.qkv.data() + stride - model.kv_rank - model.rope, stride, drafts.slot.data(),
               drafts.position.data(), rows);
}

inline void take_state(const R1Model& model, int slot, int position, int row, Drafts& drafts) {
  const size_t at = static_cast<size_t>(slot) * model.capacity + position;
  std::memcpy(drafts.states.data() + static_cast<size_t>(row) * model.hidden, model.mtp->hidden + at * model.hidden,
              model.hidden * sizeof(float));
}

// Fill the module's cache of a request up to the last position whose next token was fed.
void catch_up(const R1Model& model, int slot, int position, int& rows, Drafts& drafts, Workspace& ws) {
  for (int i = model.mtp->length[slot]; i < position - 1; ++i) {
    take_state(model, slot, i, rows, drafts);
    drafts.slot[rows] = slot;
    drafts.position[rows] = i;
    drafts.fed[rows] = model.mtp->tokens[static_cast<size_t>(slot) * model.capacity + i + 1];
    if (++rows == drafts.most) mtp_fill_cache(model, std::exchange(rows, 0), drafts, ws);
  }
  model.mtp->length[slot] = position;
}

// Draft up to drafts.size tokens a request: none beyond its limit, nor before anything was fed.
void propose(const R1Model& model, const R1Sampling& how, const R1Requests& requests, const int32_t* active, int size,
             Drafts& drafts, Workspace& ws) {
  int rows = 0;
  for (int a = 0; a < size; ++a) {
    const int r = active[a], room = requests.limit[r] - requests.count[r] - 1;
    drafts.count[a] = requests.position[r] > 0 ? std::min(drafts.size, room) : 0;
    if (drafts.count[a] > 0) catch_up(model, requests.slot[r], requests.position[r], rows, drafts, ws);
  }
  if (rows) mtp_fill_cache(model, rows, drafts, ws);
  for (int j = 0; j < drafts.size; ++j) {
    rows = 0;
    for (int a = 0, before = 0; a < size; ++a) {
      if (drafts.count[a] < j || !drafts.count[a]) continue;  // `before` counts the rows of the previous round
      const int r = active[a], from = before++;
      if (drafts.count[a] == j) continue;
      if (j == 0)
        take_state(model, requests.slot[r], requests.position[r] - 1, rows, drafts);
      else
        std::memcpy(drafts.states.data() + static_cast<size_t>(rows) * model.hidden,
                    ws.normed.data() + static_cast<size_t>(from) * model.hidden, model.hidden * sizeof(float));
      drafts.slot[rows] = requests.slot[r];
      drafts.position[rows] = requests.position[r] - 1 + j;
      drafts.fed[rows++] = j ? drafts.token[static_cast<size_t>(a) * drafts.size + j - 1] : requests.token[r];
    }
    if (!rows) return;
    mtp_input(model, rows, drafts, ws);
    run_layer(model, model.num_layers, drafts.slot.data(), drafts.position.data(), rows, ws);
    rms_norm(ws.x.data(), model.hidden, model.mtp->norm, model.eps, model.hidden, ws.normed.data(), model.hidden, rows);
    gemm(ws.normed.data(), model.hidden, model.head, model.hidden, model.vocab, nullptr, ws.logits.data(),
         ws.logits_stride, rows);
    for (int a = 0, m = 0; a < size; ++a) {
      if (drafts.count[a] <= j) continue;
      const int r = active[a];
      RunningSoftmax softmax;
      const int token = choose_token(model, how, requests, r, requests.count[r] + j,
                                     ws.logits.data() + static_cast<size_t>(m++) * ws.logits_stride, ws, softmax);
      drafts.token[static_cast<size_t>(a) * drafts.size + j] = std::max(token, 0);
    }
  }
}

// Feed the due tokens and the drafts behind them; sample at each position until a draft was wrong.
void speculative_block(const R1Model& model, const R1Sampling& how, const R1Requests& requests, const int32_t* active,
                       int size, Drafts& drafts, Workspace& ws) {
  propose(model, how, requests, active, size, drafts, ws);
  int rows = 0;
  for (int a = 0; a < size; ++a) {
    const int r = active[a];
    for (int j = 0; j <= drafts.count[a]; ++j, ++rows) {
      drafts.slot[rows] = requests.slot[r];
      drafts.position[rows] = requests.position[r] + j;
      drafts.fed[rows] = j ? drafts.token[static_cast<size_t>(a) * drafts.size + j - 1] : requests.token[r];
    }
  }
  forward_block(model, drafts.slot.data(), drafts.fed.data(), drafts.position.data(), rows, ws);
  gemm(ws.normed.data(), model.hidden, model.head, model.hidden, model.vocab, nullptr, ws.logits.data(),
       ws.logits_stride, rows);
  float* logits = ws.logits.data();
  for (int a = 0; a < size; logits += static_cast<size_t>(drafts.count[a++] + 1) * ws.logits_stride) {
    const int r = active[a];
    requests.drafted[r] += drafts.count[a];
    for (int j = 0;; ++j) {
      sample_row(model, how, requests, r, logits + static_cast<size_t>(j) * ws.logits_stride, ws);
      if (j == drafts.count[a] || requests.status[r] == NOT_FINITE) break;
      if (requests.token[r] != drafts.token[static_cast<size_t>(a) * drafts.size + j]) break;
      ++requests.accepted[r];
      if (requests.status[r] != RUNNING) break;
    }
  }
}
