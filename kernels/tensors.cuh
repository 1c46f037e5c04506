// tensors.cuh: the table of a model's tensors, which optim.cu and clip.cu go through in chunks.
#pragma once
#include "common.cuh"

constexpr int CHUNK = 4096;
constexpr int WORDS = 6;  // of a tensor in the table: five addresses, count
