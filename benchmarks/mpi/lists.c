/* Message lists, each with where its numbers come from.
 *
 * Sizes follow from model shapes; how gradients are bundled, and computing times, are those published
 * with HEAR (SC 2023) for its proxies, measured on A100s. Only AllReduces are here: halo
 * exchanges, all-to-alls and pipeline messages of these models are no sums over ranks. Computing is that
 * since the message before, within the backward pass where messages are gradients. */
#include "lists.h"

#include <string.h>

/* ResNet-152, batch 128: 60.2 M parameters in ten bundles, 23.8 ms of the backward pass before each. */
static const list_messages resnet152[] = {
    {6511592, 23.8e-3, 1}, {6567936, 23.8e-3, 1}, {5905920, 23.8e-3, 1}, {6113280, 23.8e-3, 1},
    {6176256, 23.8e-3, 1}, {6112768, 23.8e-3, 1}, {6176256, 23.8e-3, 1}, {6112768, 23.8e-3, 1},
    {5321216, 23.8e-3, 1}, {5194816, 23.8e-3, 1},
};

/* DLRM, batch 2048, multilayer perceptrons only (embeddings travel by all-to-all). Top 512-512-512-256-1
 * over 138 inputs (128 features, 5 * 4 / 2 = 10 products of pairs):
 * 138*512+512 + 2*(512*512+512) + 512*256+256 + 256+1 = 728065, padded to 728068.
 * Bottom 128-128-128-128: 3 * (128*128 + 128) = 49536.
 * Computing: twice the forward times, 2 * 455 us, then interaction and bottom, 209 + 2 * 341 us. */
static const list_messages dlrm[] = {{728068, 910e-6, 1}, {49536, 891e-6, 1}};

/* CosmoFlow, four model shards: a shard of the dense layers, then 3x3x3 convolutions backwards,
 * 27 * in * out + out for 256-512, 128-256, 64-128, 32-64 and 4-32 channels. */
static const list_messages cosmoflow[] = {
    {1050740, 18e-6, 1},    {3539456, 3.283e-3, 1}, {884992, 6.567e-3, 1},
    {221312, 13.135e-3, 1}, {55360, 26.270e-3, 1},  {3488, 13.135e-3, 1},
};

/* GPT-3 175B, d = 12288, sequences of 2048, four tensor shards: what one rank of one layer sums for one
 * micro-batch. Activations 2048 * d = 25165824, twice forward and twice backward; then the shard's
 * gradients, 12 d^2 / 4 = 452984832. Computing 15.9 ms forward and 31.8 ms backward, here divided over
 * the two messages of each. */
static const list_messages gpt3[] = {
    {25165824, 7.957e-3, 2},
    {25165824, 15.915e-3, 2},
    {452984832, 0.0, 1},
};

/* DeepSeek-V2-Lite (arXiv 2405.04434, appendix B): hidden 2048, 27 layers, vocabulary 102400; 16 heads,
 * of 128 + 64 for queries and keys and 128 for values, KV rank 512, queries not compressed; first layer
 * dense with 10944; then 2 shared and 64 routed experts of 1408. What all data-parallel ranks
 * sum, backwards; routed experts are spread over ranks (expert parallelism), 64 of them one each.
 *   attention  2048*16*192 + 2048*(512+64) + 512 + 512*16*(128+128) + 16*128*2048 = 13763072
 *   layer      attention + 3*2048*(2*1408) + 64*2048 + 2*2048                      = 31199744
 *   dense      attention + 3*2048*10944 + 2*2048                                   = 81007104
 *   embedding  102400*2048 = 209715200; so is the output layer
 * Computing, reckoned: V2 took 172.8 thousand H800 hours for 10^12 tokens with 21e9 parameters active; with
 * 2.4e9 that is 71 us a token, 2/3 of it backward, for 8 sequences of 4096 tokens: 1.55 s over
 * 29 messages. */
static const list_messages deepseek_v2_lite[] = {
    {209715200, 53.5e-3, 1},
    {31199744, 53.5e-3, 26},
    {81007104, 53.5e-3, 1},
    {209715200, 53.5e-3, 1},
};

/* DeepSeek-V3 (arXiv 2412.19437): hidden 7168, 61 layers over 16 pipeline stages, 64-way expert
 * parallelism, 2048 GPUs; 128 heads of 128 + 64 and 128, query rank 1536, KV rank 512; 1 shared and 256
 * routed experts of 2048. One stage of four layers, backwards; two messages a layer, each:
 *   attention  7168*1536 + 1536 + 1536*128*192 + 7168*(512+64) + 512 + 512*128*(128+128)
 *              + 128*128*7168                                                      = 187107328
 *   layer      attention + 3*7168*2048 + 256*7168 + 2*7168                         = 232996864
 *   experts    this rank's 256 / 64 = 4 of them, 4 * 3*7168*2048                   = 176160768
 * They shard the optimiser's state, so that their sums are reduce-scatters; an AllReduce of the same
 * gradients stands for them here. Computing, reckoned: 180 thousand H800 hours for 10^12 tokens are
 * 0.648 ms a token; 15360 sequences of 4096 tokens over 2048 GPUs make 30720 tokens a GPU, 2/3 of it
 * backward: 13.3 s over 8 messages. */
static const list_messages deepseek_v3[] = {
    {232996864, 1.66, 1}, {176160768, 1.66, 1}, {232996864, 1.66, 1}, {176160768, 1.66, 1},
    {232996864, 1.66, 1}, {176160768, 1.66, 1}, {232996864, 1.66, 1}, {176160768, 1.66, 1},
};

#define WORKLOAD(name, about, messages) \
    {name, about, messages, sizeof(messages) / sizeof((messages)[0])}

static const list_workload workloads[] = {
    WORKLOAD("resnet152", "ResNet-152, gradients", resnet152),
    WORKLOAD("dlrm", "DLRM, gradients of its perceptrons", dlrm),
    WORKLOAD("cosmoflow", "CosmoFlow, gradients", cosmoflow),
    WORKLOAD("gpt3", "GPT-3 175B, one shard of one layer", gpt3),
    WORKLOAD("deepseek-v2-lite", "DeepSeek-V2-Lite, shared gradients", deepseek_v2_lite),
    WORKLOAD("deepseek-v3", "DeepSeek-V3, gradients of a stage", deepseek_v3),
};

const list_workload *list_at(size_t place) {
    return place < sizeof(workloads) / sizeof(workloads[0]) ? &workloads[place] : NULL;
}

const list_workload *list_find(const char *name) {
    for (size_t place = 0; list_at(place) != NULL; place++)
        if (strcmp(workloads[place].name, name) == 0) return &workloads[place];
    return NULL;
}
