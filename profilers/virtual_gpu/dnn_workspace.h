/* Asks the process that has the real cuDNN (cudnn_server.py) what it would choose. */
#ifndef DNNMEM_DNN_WORKSPACE_H
#define DNNMEM_DNN_WORKSPACE_H

#include <stddef.h>
#include <stdint.h>

/* One engine configuration, as the real cuDNN's heuristics offer it. */
typedef struct {
    int64_t index;     /* its number inside cuDNN */
    int64_t workspace; /* bytes; -1: no plan can be made of it */
    int64_t notes;     /* numerical notes, a bit for each */
    int64_t behavior;  /* behavior notes, a bit for each */
} dnn_engine;

/* The engines for `question` (its form: cudnn_query.py), best first, and in *count how many: always one or more. Where
 * nobody answers, or cuDNN does not know, it is one engine without a workspace, and vg_dnn_unknown counts it. The
 * result stays valid. Safe to call from any thread. */
const dnn_engine *dnn_engines(const char *question, size_t *count);

#endif
