/* libcudnn.so, the graph interface: descriptors as a store of attributes, and plans with the workspace they would have.
 *
 * What torch wants to know of an operation graph is asked of the real cuDNN, in another process: the descriptors that
 * torch has made are written down as they are (the form: cudnn_query.py), whatever operation they describe. From
 * cudnn_graph.h.
 */
#include "dnn_workspace.h"
#include "virtual_gpu.h"

#include <cudnn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_WORKSPACE_SIZE = 303, CONFIG_SHARED_MEMORY_USED = 304 }; /* CUDNN_ATTR_ENGINECFG_..., since cuDNN 9.2 */

typedef struct attribute {
    int name;
    cudnnBackendAttributeType_t type;
    int64_t count;
    void *values;
    struct attribute *next;
} attribute;

typedef struct {
    cudnnBackendDescriptorType_t type;
    atomic_int users; /* who made it, and the descriptors that name it: cuDNN keeps what these need */
    attribute *first;
    dnn_engine engine; /* of an engine, of its configuration, of the plan that is made of it */
} descriptor;

static size_t bytes_of(cudnnBackendAttributeType_t type)
{
    switch ((int)type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
        return 1;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    case CUDNN_TYPE_FRACTION:
        return 16;
    default:
        return 4; /* enumerations, int32, float */
    }
}

/* ---- the store ---- */

static const attribute *find(const descriptor *it, int name)
{
    const attribute *a = it ? it->first : NULL;
    while (a && a->name != name)
        a = a->next;
    return a;
}

/* The one descriptor that `it` names under `name`, or NULL. */
static descriptor *part(const descriptor *it, int name)
{
    const attribute *a = find(it, name);
    return a && a->type == CUDNN_TYPE_BACKEND_DESCRIPTOR && a->count ? *(descriptor **)a->values : NULL;
}

static void leave(descriptor *it);

static void drop(attribute *a)
{
    if (a->type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
        for (int64_t i = 0; i < a->count; i++)
            leave(((descriptor **)a->values)[i]);
    free(a->values);
    free(a);
}

static void leave(descriptor *it)
{
    if (!it || atomic_fetch_sub(&it->users, 1) > 1)
        return;
    for (attribute *a = it->first, *next; a; a = next) {
        next = a->next;
        drop(a);
    }
    free(it);
}

EXPORT cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *made)
{
    descriptor *it = calloc(1, sizeof *it);
    if (!it)
        return CUDNN_STATUS_INTERNAL_ERROR;
    it->type = type;
    it->users = 1;
    *made = it;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t handle)
{
    leave(handle);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                              cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    size_t nbytes = bytes_of(type) * (size_t)count;
    attribute *made = malloc(sizeof *made);
    void *copy = malloc(nbytes + 1);
    if (!made || !copy)
        return CUDNN_STATUS_INTERNAL_ERROR;
    if (nbytes)
        memcpy(copy, values, nbytes);
    *made = (attribute){.name = (int)name, .type = type, .count = count, .values = copy};
    for (int64_t i = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < count; i++)
        if (((descriptor **)copy)[i])
            atomic_fetch_add(&((descriptor **)copy)[i]->users, 1);
    attribute **place = &((descriptor *)handle)->first; /* in the order of the calls; set again: in its old place */
    while (*place && (*place)->name != (int)name)
        place = &(*place)->next;
    attribute *was = *place;
    made->next = was ? was->next : NULL;
    *place = made;
    if (was)
        drop(was);
    return CUDNN_STATUS_SUCCESS;
}

/* ---- the question ---- */

typedef struct {
    char *text;
    size_t used, room;
    const descriptor **written; /* their places are their names */
    size_t count;
} question;

static void put(question *q, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (q->room - q->used < 64) {
        char *larger = realloc(q->text, q->room = 2 * q->room + 4096);
        if (!larger)
            abort();
        q->text = larger;
    }
    q->used += (size_t)vsnprintf(q->text + q->used, q->room - q->used, format, arguments);
    va_end(arguments);
}

static size_t place_of(const question *q, const descriptor *it)
{
    size_t place = 0;
    while (place < q->count && q->written[place] != it)
        place++;
    return place;
}

static int64_t integer(const void *values, size_t width, int64_t place)
{
    switch (width) {
    case 1:
        return ((const signed char *)values)[place];
    case 4:
        return ((const int32_t *)values)[place];
    default:
        return ((const int64_t *)values)[place];
    }
}

static bool is_left_out(const attribute *a)
{
    return a->type == CUDNN_TYPE_HANDLE || a->type == CUDNN_TYPE_VOID_PTR;
}

static void put_attribute(question *q, const attribute *a, const char *comma)
{
    put(q, "%s[%d,%d,[", comma, a->name, (int)a->type);
    size_t width = bytes_of(a->type), parts = width == 16 ? 2 : 1;
    for (int64_t i = 0; i < a->count * (int64_t)parts; i++) {
        bool is_descriptor = a->type == CUDNN_TYPE_BACKEND_DESCRIPTOR;
        int64_t value = is_descriptor ? (int64_t)place_of(q, ((descriptor **)a->values)[i])
                                      : integer(a->values, width / parts, i);
        put(q, "%s%lld", i ? "," : "", (long long)value);
    }
    put(q, "]]");
}

/* `it` and what it names, parts before wholes. */
static void put_descriptor(question *q, const descriptor *it)
{
    if (!it || place_of(q, it) < q->count)
        return;
    for (const attribute *a = it->first; a; a = a->next)
        for (int64_t i = 0; a->type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < a->count; i++)
            put_descriptor(q, ((descriptor **)a->values)[i]);
    put(q, "%s[%d,[", q->count ? "," : "", (int)it->type);
    const char *comma = "";
    for (const attribute *a = it->first; a; a = a->next) {
        if (is_left_out(a))
            continue;
        put_attribute(q, a, comma);
        comma = ",";
    }
    put(q, "]]");
    const descriptor **larger = realloc(q->written, (q->count + 1) * sizeof *larger);
    if (!larger)
        abort();
    q->written = larger;
    q->written[q->count++] = it;
}

/* The engines that the real cuDNN would offer for the graph of these heuristics. */
static const dnn_engine *offered(const descriptor *heuristics, size_t *count)
{
    const attribute *mode = find(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE);
    question q = {0};
    put(&q, "{\"mode\":%d,\"graph\":[", mode && mode->count ? *(const int32_t *)mode->values : 0);
    put_descriptor(&q, part(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH));
    put(&q, "]}");
    const dnn_engine *engines = dnn_engines(q.text, count);
    free(q.text);
    free(q.written);
    return engines;
}

/* ---- the answer ---- */

/* A plan exists if the real cuDNN could make it: else torch goes on to the next engine. */
EXPORT cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t handle)
{
    descriptor *it = handle, *chosen = NULL;
    if (it->type == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
        chosen = part(it, CUDNN_ATTR_ENGINECFG_ENGINE);
    if (it->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
        chosen = part(it, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    if (chosen)
        it->engine = chosen->engine;
    return it->engine.workspace < 0 ? CUDNN_STATUS_NOT_SUPPORTED : CUDNN_STATUS_SUCCESS;
}

/* The heuristics' results: the caller brings the descriptors. */
static cudnnStatus_t offer(const descriptor *heuristics, int64_t room, int64_t *count, descriptor **brought)
{
    size_t known;
    const dnn_engine *engines = offered(heuristics, &known);
    *count = (int64_t)known;
    if (!brought || room <= 0)
        return CUDNN_STATUS_SUCCESS;
    *count = room < *count ? room : *count;
    for (int64_t i = 0; i < *count; i++)
        if (brought[i])
            brought[i]->engine = engines[i];
    return CUDNN_STATUS_SUCCESS;
}

/* Write a number that the library would have worked out, if there is room for it. */
static cudnnStatus_t answer(int64_t value, size_t nbytes, int64_t room, int64_t *count, void *values)
{
    *count = 1;
    if (values && room > 0)
        memcpy(values, &value, nbytes);
    return CUDNN_STATUS_SUCCESS;
}

/* Notes, given as bits, as the list that cuDNN gives. */
static cudnnStatus_t list_notes(int64_t bits, int64_t room, int64_t *count, int *values)
{
    *count = 0;
    for (int note = 0; note < 63; note++)
        if (bits >> note & 1 && values && *count < room)
            values[(*count)++] = note;
        else
            *count += bits >> note & 1;
    if (values && *count > room)
        *count = room;
    return CUDNN_STATUS_SUCCESS;
}

/* What was set, handed back; of a descriptor that the caller brings, the engine is filled in. */
static cudnnStatus_t recall(const descriptor *it, int name, int64_t room, int64_t *count, void *values)
{
    const attribute *a = find(it, name);
    *count = a ? a->count : 0;
    int64_t fits = room < *count ? room : *count;
    if (!a || !values || fits <= 0)
        return CUDNN_STATUS_SUCCESS;
    if (a->type != CUDNN_TYPE_BACKEND_DESCRIPTOR)
        memcpy(values, a->values, bytes_of(a->type) * (size_t)fits);
    else if (*(descriptor **)values && part(it, name))
        (*(descriptor **)values)->engine = part(it, name)->engine;
    return CUDNN_STATUS_SUCCESS;
}

/* A plan as JSON: what torch reads of it, to leave out engines that are wrong on one architecture. */
static cudnnStatus_t describe(const descriptor *plan, int64_t room, int64_t *count, void *values)
{
    char text[96];
    *count = 1 + snprintf(text, sizeof text, "{\"engine\":{\"smVersion\":%d}}",
                          100 * vg_attribute(75, 0) + 10 * vg_attribute(76, 0)); /* the compute capability */
    if (values && room > 0)
        memcpy(values, text, (size_t)(room < *count ? room : *count));
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const handle, cudnnBackendAttributeName_t name,
                                              cudnnBackendAttributeType_t type, int64_t room, int64_t *count,
                                              void *values)
{
    const descriptor *it = handle;
    int64_t unasked;
    count = count ? count : &unasked;
    (void)type; /* it has to be the attribute's own */
    switch ((int)name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
        return offer(it, room, count, values);
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        *count = 1;
        if (values && room > 0 && *(descriptor **)values)
            (*(descriptor **)values)->engine = it->engine;
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT:
        return answer(1, 8, room, count, values);
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        return answer(it->engine.index, 8, room, count, values);
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
    case CONFIG_WORKSPACE_SIZE:
        return answer(it->engine.workspace < 0 ? 0 : it->engine.workspace, 8, room, count, values);
    case CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION:
        return describe(it, room, count, values);
    case CONFIG_SHARED_MEMORY_USED:
        return answer(0, 4, room, count, values);
    case CUDNN_ATTR_ENGINE_KNOB_INFO:
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
        *count = 0;
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
        return list_notes(it->engine.notes, room, count, values);
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
        return list_notes(it->engine.behavior, room, count, values);
    default:
        return recall(it, (int)name, room, count, values);
    }
}
