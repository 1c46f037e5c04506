// A stand-in for libcuda.so.1 and for the CUDA runtime that CuPy links statically (driver.py puts
// the functions whose names begin with cuda into its place). The GPU that it shows is an H100.
//
// Device memory is an arena that the host cannot touch: its pages are open only while queued work
// runs. Fresh memory holds NaN. Work is queued, stream by stream, and runs as late as events and
// synchronisation permit: what reads a result too early, or changes an argument too soon, sees it.
// With a seed, work may run at once too, and what is free to overtake other work does: streams, and
// the branches of a graph. Launches are handed to a function (`standin_set_launcher`), or only
// counted. Stream capture has its three modes, and the errors of what may not happen during one.
// Every function counts its calls.
//
// Source of the behaviour: CUDA Runtime API and Driver API documentation, release 13.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {  // cudaError_t and CUresult have the same numbers
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_HANDLE = 400,
    NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILURE = 719,
    NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
    CAPTURE_MERGE = 902, CAPTURE_UNMATCHED = 903, CAPTURE_UNJOINED = 904, CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, WRONG_THREAD = 908
};
enum { GLOBAL, THREAD_LOCAL, RELAXED };                       // cudaStreamCaptureMode
enum { LAUNCH, COPY, FILL, RECORD, WAIT, HOST, GRAPH };       // kinds of work
enum { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, BY_ADDRESS };
enum { NON_BLOCKING = 1 };                                    // cudaStreamNonBlocking

typedef struct Stream Stream;
typedef struct Event Event;
typedef struct Capture Capture;
typedef struct Graph Graph;
typedef struct Function Function;
typedef int (*Launcher)(Function*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, unsigned char*);
typedef int (*Describer)(Function*);

typedef struct Work Work;
typedef struct { Work** at; int count; } Nodes;  // some of a graph's

struct Work {
    int kind, done, references;
    Stream* stream;
    Work* next;
    Work* after;  // work of another stream that must be done first
    Nodes needs;  // of a graph's node: what must be done first
    Function* function;  // LAUNCH
    unsigned grid[3], block[3], shared;
    unsigned char* parameters;
    unsigned char *to, *from, *staged;  // COPY, FILL
    size_t bytes;
    int value;
    Event* event;  // RECORD
    void (*call)(void*);  // HOST
    void* data;
    Graph* graph;  // GRAPH
};

struct Stream {
    int flags, priority, dead;
    Work *first, *last;  // what waits
    Capture* capture;
    Nodes tips;  // what the next piece of captured work needs
    Stream* next;
};
struct Event {
    int timed, dead;
    Work* work;  // that records it; none: never recorded
    Capture* capture;  // in which it was recorded last
    Nodes tips;
    double at;
};
struct Capture {
    int mode, invalid;
    Stream* origin;
    pthread_t thread;
    Graph* graph;
    Capture* next;
};
struct Graph {  // one that is instantiated too: nothing changes a captured one
    Work *first, *last;
    int count;
    Work* launched;  // last: a graph's launches follow each other, on whatever streams they are
};
struct Function {
    void* module;
    char name[256];
    int dynamic_shared, described, parameter_count;
    size_t *sizes, *offsets, bytes;
};

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static Launcher launcher;
static Describer describer;
static int deferred, sticky;
static uint64_t seed;
static Stream legacy;  // the default stream
static Stream* streams = &legacy;
static Capture* captures;

// ---- counts ------------------------------------------------------------------------------------

#define COUNTED 256
static struct { const char* name; long long calls; } counted[COUNTED];

static void count(const char* name) {
    for (int i = 0; i < COUNTED; i++) {
        if (!counted[i].name) counted[i].name = name;
        if (counted[i].name == name) { counted[i].calls++; return; }
    }
}
long long standin_calls(const char* name) {
    for (int i = 0; i < COUNTED && counted[i].name; i++)
        if (!strcmp(counted[i].name, name)) return counted[i].calls;
    return 0;
}
const char* standin_counted(int i) { return i < COUNTED ? counted[i].name : 0; }
void standin_forget_counts(void) { for (int i = 0; i < COUNTED; i++) counted[i].calls = 0; }
static long long copied[5];
long long standin_copied(int kind) { return copied[kind]; }

// A call takes the lock until it returns, counts itself, and fails for ever once a kernel failed.
// The lock is recursive: the launcher is Python, which may free arrays while a kernel runs. A thread
// that waits for the lock lets go of Python's own, which that launcher needs.
static void lock_all(void) {
    if (!pthread_mutex_trylock(&lock)) return;
    int (*holds)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Check");
    void* (*save)(void) = (void* (*)(void))dlsym(RTLD_DEFAULT, "PyEval_SaveThread");
    void (*restore)(void*) = (void (*)(void*))dlsym(RTLD_DEFAULT, "PyEval_RestoreThread");
    void* state = holds && holds() ? save() : 0;
    pthread_mutex_lock(&lock);
    if (state) restore(state);
}
static int take(const char* name) {
    lock_all();
    count(name);
    return 0;
}
static void give(const int* held) {
    (void)held;
    pthread_mutex_unlock(&lock);
}
#define ENTER __attribute__((cleanup(give))) int held_ = take(__func__); (void)held_
#define BEGIN ENTER; if (sticky) return sticky
#define CHECK(call) do { int status_ = (call); if (status_) return status_; } while (0)

// ---- memory ------------------------------------------------------------------------------------

#define ARENA ((size_t)64 << 30)
#define ALIGNMENT 512
#define GUARD 512  // bytes between two allocations
typedef struct Block { size_t begin, bytes; struct Block* next; } Block;
static unsigned char* arena;
static Block* blocks;  // in use, by address
static size_t highest, opened;  // bytes of the arena that were ever used; that are open now
static int open_depth;

static int in_arena(const void* p) {
    return arena && (unsigned char*)p >= arena && (unsigned char*)p < arena + ARENA;
}
static void open_arena(void) {
    open_depth++;
    if (opened < highest) mprotect(arena, opened = highest, PROT_READ | PROT_WRITE);
}
static void close_arena(void) {
    if (!--open_depth && opened && deferred) mprotect(arena, opened, PROT_NONE), opened = 0;
}
static int allocate(void** p, size_t bytes) {
    if (!arena) {
        arena = mmap(0, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arena == MAP_FAILED) return OUT_OF_MEMORY;
    }
    size_t need = (bytes + GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, begin = 0;
    Block** place = &blocks;
    for (; *place; place = &(*place)->next) {  // the first gap that is large enough
        if ((*place)->begin - begin >= need) break;
        begin = ((*place)->begin + (*place)->bytes + GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    if (begin + need > ARENA) return OUT_OF_MEMORY;
    Block* made = malloc(sizeof *made);
    *made = (Block){begin, bytes, *place};
    *place = made;
    size_t end = (begin + need + 4095) / 4096 * 4096;
    if (end > highest) highest = end;
    open_arena();
    memset(arena + begin, 0xff, need);
    close_arena();
    *p = arena + begin;
    return SUCCESS;
}
// The bytes from p to the end of its allocation; 0 outside of all.
size_t standin_extent(const void* p) {
    if (!in_arena(p)) return 0;
    size_t at = (unsigned char*)p - arena;
    for (Block* b = blocks; b; b = b->next)
        if (at >= b->begin && at < b->begin + b->bytes) return b->begin + b->bytes - at;
    return 0;
}

typedef struct Pinned {
    unsigned char* begin;
    size_t bytes;
    int registered;  // it belongs to the program
    struct Pinned* next;
} Pinned;
static Pinned* pinned;
static int is_pinned(const void* p) {
    for (Pinned* b = pinned; b; b = b->next)
        if ((unsigned char*)p >= b->begin && (unsigned char*)p < b->begin + b->bytes) return 1;
    return 0;
}

// ---- work --------------------------------------------------------------------------------------

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * t.tv_sec + 1e-6 * t.tv_nsec;
}
static uint64_t draw(void) {  // splitmix64
    static uint64_t state;
    uint64_t x = seed + (state += 0x9e3779b97f4a7c15u);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
static void release(Work* work) {
    if (!work || --work->references) return;
    release(work->after);
    free(work->needs.at);
    free(work->parameters);
    free(work->staged);
    free(work);
}
static Work* hold(Work* work) {
    if (work) work->references++;
    return work;
}
static void add(Nodes* to, Work* node) {
    for (int i = 0; i < to->count; i++) if (to->at[i] == node) return;
    to->at = realloc(to->at, (to->count + 1) * sizeof *to->at);
    to->at[to->count++] = node;
}
static void join(Nodes* to, Nodes from) { for (int i = 0; i < from.count; i++) add(to, from.at[i]); }
static void forget(Nodes* nodes) {
    free(nodes->at);
    *nodes = (Nodes){0};
}
static int ready(Work* node) {
    for (int i = 0; i < node->needs.count; i++) if (!node->needs.at[i]->done) return 0;
    return !node->done;
}
static void execute(Work* work);

// All nodes of a graph, each after what it needs: in the order of their capture, or with a seed any.
static void execute_graph(Graph* graph) {
    for (Work* w = graph->first; w; w = w->next) w->done = 0;
    for (Work* w = graph->first; w && !seed && !sticky; w = w->next) execute(w);
    for (int left = graph->count; left && seed && !sticky; left--) {
        int number = 0;
        for (Work* w = graph->first; w; w = w->next) number += ready(w);
        int chosen = draw() % number;
        Work* w = graph->first;
        while (!ready(w) || chosen--) w = w->next;
        execute(w);
        w->done = 1;
    }
}
// Whether work would run over memory of the device that is no longer an allocation's.
static int freed(const Work* work) {
    if (work->kind != LAUNCH)
        return (in_arena(work->to) && standin_extent(work->to) < work->bytes) ||
               (in_arena(work->from) && standin_extent(work->from) < work->bytes);
    for (int i = 0; work->parameters && i < work->function->parameter_count; i++) {
        unsigned char* p;
        if (work->function->sizes[i] != sizeof p) continue;
        memcpy(&p, work->parameters + work->function->offsets[i], sizeof p);
        if (in_arena(p) && !standin_extent(p) && !standin_extent(p - 1)) return 1;
    }
    return 0;
}
static void execute(Work* work) {
    if (work->kind <= FILL && freed(work)) {
        const char* name = work->kind == LAUNCH ? work->function->name : "a copy or fill";
        fprintf(stderr, "stand-in driver: %s runs over memory that was freed\n", name);
        sticky = ILLEGAL_ADDRESS;
        return;
    }
    switch (work->kind) {
    case LAUNCH:
        if (launcher && launcher(work->function, work->grid[0], work->grid[1], work->grid[2],
                                 work->block[0], work->block[1], work->block[2], work->shared,
                                 work->parameters))
            sticky = ILLEGAL_ADDRESS;
        break;
    case COPY: memmove(work->to, work->staged ? work->staged : work->from, work->bytes); break;
    case FILL: memset(work->to, work->value, work->bytes); break;
    case RECORD: work->event->at = now(); break;
    case HOST: work->call(work->data); break;
    case GRAPH: execute_graph(work->graph); break;
    }
}
static void run_until(Stream* stream, Work* last);

static void step(Stream* stream) {  // the stream's first piece of work
    Work* work = stream->first;
    if (work->after && !work->after->done) run_until(work->after->stream, work->after);
    if (stream->first != work) return;  // it ran meanwhile
    stream->first = work->next;
    if (!stream->first) stream->last = 0;
    open_arena();
    if (!sticky) execute(work);
    close_arena();
    work->done = 1;
    release(work);
}
// A stream with work to do: the first of them, or with a seed any.
static Stream* any_stream(void) {
    int number = 0;
    for (Stream* s = streams; s; s = s->next) number += s->first != 0;
    if (!number) return 0;
    int chosen = seed ? draw() % number : 0;
    for (Stream* s = streams; s; s = s->next)
        if (s->first && !chosen--) return s;
    return 0;
}
static void run_until(Stream* stream, Work* last) {
    open_arena();
    while (stream->first && !(last && last->done)) {
        int overtaken = seed && draw() % 2;
        step(overtaken ? any_stream() : stream);
    }
    close_arena();
}
static void run_all(void) {
    open_arena();
    for (Stream* s; (s = any_stream());) step(s);
    close_arena();
}
static void wait_for(Stream* stream, Work* other) {
    if (!other || other->done) return;
    Work* work = calloc(1, sizeof *work);
    work->kind = WAIT, work->stream = stream, work->references = 1, work->after = hold(other);
    if (stream->last) stream->last->next = work; else stream->first = work;
    stream->last = work;
}
// Queue a copy of `given` on its stream, or add it to the stream's capture.
static int submit(Work given) {
    Stream* stream = given.stream;
    Work* work = malloc(sizeof *work);
    *work = given;
    work->references = 1;
    if (stream->capture) {
        Graph* graph = stream->capture->graph;
        if (graph->last) graph->last->next = work; else graph->first = work;
        graph->last = work;
        graph->count++;
        work->needs = stream->tips;
        stream->tips = (Nodes){0};
        add(&stream->tips, work);
        return SUCCESS;
    }
    // the default stream and the streams that are not NON_BLOCKING wait for each other
    if (stream == &legacy) {
        for (Stream* s = streams; s; s = s->next)
            if (s != &legacy && !(s->flags & NON_BLOCKING)) wait_for(stream, s->last);
    } else if (!(stream->flags & NON_BLOCKING)) wait_for(stream, legacy.last);
    if (stream->last) stream->last->next = work; else stream->first = work;
    stream->last = work;
    if (!deferred) run_until(stream, 0);
    else if (seed) for (Stream* s; draw() % 2 && (s = any_stream());) step(s);
    return sticky;
}
void standin_configure(int defer, uint64_t with_seed) {
    deferred = defer;
    seed = with_seed;
}
void standin_set_launcher(Launcher function, Describer describe) {
    launcher = function;
    describer = describe;
}
int standin_pending(void) {
    int pending = 0;
    for (Stream* s = streams; s; s = s->next) for (Work* w = s->first; w; w = w->next) pending++;
    return pending;
}

// ---- capture: what is forbidden during one -----------------------------------------------------

int cudaStreamCreate(Stream** made);
static void invalidate(Capture* capture) { capture->invalid = 1; }

// For calls that could wait for, or depend on, what a capture has only written down.
static int unsafe_call(void) {
    int forbidden = 0;
    for (Capture* c = captures; c; c = c->next) {
        int mine = pthread_equal(c->thread, pthread_self());
        if (c->mode == GLOBAL || (mine && c->mode == THREAD_LOCAL)) invalidate(c), forbidden = 1;
    }
    return forbidden ? CAPTURE_UNSUPPORTED : SUCCESS;
}
// For calls that wait for the whole device: no mode permits them.
static int waits_for_all(void) {
    for (Capture* c = captures; c; c = c->next) invalidate(c);
    return captures ? CAPTURE_UNSUPPORTED : SUCCESS;
}
// For work on the default stream: a captured stream that would wait for it spoils its capture.
static int implicit(Stream* stream, int spoils) {
    int found = 0;
    if (stream == &legacy)
        for (Stream* s = streams; s; s = s->next)
            if (s->capture && !(s->flags & NON_BLOCKING)) {
                found = 1;
                if (spoils) invalidate(s->capture);
            }
    return found ? CAPTURE_IMPLICIT : SUCCESS;
}
static int named(Stream** stream) {
    if (!*stream || (intptr_t)*stream == 1) *stream = &legacy;  // 0 and cudaStreamLegacy
    if ((intptr_t)*stream == 2) {  // cudaStreamPerThread
        static __thread Stream* own;
        if (!own) CHECK(cudaStreamCreate(&own));
        *stream = own;
    }
    return (*stream)->dead ? INVALID_HANDLE : SUCCESS;
}
static int usable(Stream** stream) {
    CHECK(named(stream));
    if ((*stream)->capture && (*stream)->capture->invalid) return CAPTURE_INVALIDATED;
    return implicit(*stream, 1);
}

// ---- the runtime: memory -----------------------------------------------------------------------

int cudaMalloc(void** p, size_t bytes) {
    BEGIN;
    CHECK(unsafe_call());
    return allocate(p, bytes ? bytes : 1);
}
int cudaFree(void* p) {
    BEGIN;
    CHECK(unsafe_call());
    if (!p) return SUCCESS;
    run_all();  // it waits for the device
    size_t at = (unsigned char*)p - arena;
    for (Block** place = &blocks; *place; place = &(*place)->next)
        if ((*place)->begin == at) {
            Block* gone = *place;
            *place = gone->next;
            open_arena();
            memset(arena + gone->begin, 0xff, gone->bytes);  // what still reads it sees NaN
            close_arena();
            free(gone);
            return sticky;
        }
    return INVALID_VALUE;
}
int cudaHostAlloc(void** p, size_t bytes, unsigned flags) {
    BEGIN;
    CHECK(unsafe_call());
    if (posix_memalign(p, 4096, bytes ? bytes : 1)) return OUT_OF_MEMORY;
    Pinned* made = malloc(sizeof *made);
    *made = (Pinned){*p, bytes, 0, pinned};
    pinned = made;
    (void)flags;
    return SUCCESS;
}
int cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
int cudaHostRegister(void* p, size_t bytes, unsigned flags) {
    BEGIN;
    CHECK(unsafe_call());
    Pinned* made = malloc(sizeof *made);
    *made = (Pinned){p, bytes, 1, pinned};
    pinned = made;
    (void)flags;
    return SUCCESS;
}
int cudaFreeHost(void* p) {
    BEGIN;
    CHECK(unsafe_call());
    run_all();
    for (Pinned** place = &pinned; *place; place = &(*place)->next)
        if ((*place)->begin == p) {
            Pinned* gone = *place;
            *place = gone->next;
            if (!gone->registered) free(gone->begin);
            free(gone);
            return SUCCESS;
        }
    return INVALID_VALUE;
}
int cudaHostUnregister(void* p) { return cudaFreeHost(p); }
int cudaMemGetInfo(size_t* unused, size_t* total) {
    BEGIN;
    size_t used = 0;
    for (Block* b = blocks; b; b = b->next) used += b->bytes;
    *unused = ARENA - used;
    *total = ARENA;
    return SUCCESS;
}
struct PointerAttributes { int type, device; void *on_device, *on_host; long reserved[8]; };
int cudaPointerGetAttributes(struct PointerAttributes* a, const void* p) {
    BEGIN;
    memset(a, 0, sizeof *a);
    if (in_arena(p)) a->type = 2, a->on_device = (void*)p;  // cudaMemoryTypeDevice
    else if (is_pinned(p)) a->type = 1, a->on_device = a->on_host = (void*)p;
    else a->device = -2, a->on_host = (void*)p;
    return SUCCESS;
}

static int copy(void* to, const void* from, size_t bytes, int kind, Stream* stream, int wait) {
    if (kind == BY_ADDRESS) kind = 2 * in_arena(from) + in_arena(to);
    if ((kind & 1) != in_arena(to) || (kind >> 1) != in_arena(from)) return INVALID_VALUE;
    if (bytes && ((in_arena(to) && standin_extent(to) < bytes) ||
                  (in_arena(from) && standin_extent(from) < bytes))) return INVALID_VALUE;
    copied[kind] += bytes;
    Work work = {.kind = COPY, .stream = stream, .to = to, .from = (void*)from, .bytes = bytes};
    int pageable = (kind == HOST_TO_DEVICE && !is_pinned(from)) ||
                   (kind == DEVICE_TO_HOST && !is_pinned(to));
    if (pageable && stream->capture) {
        invalidate(stream->capture);
        return CAPTURE_UNSUPPORTED;
    }
    if (pageable && kind == HOST_TO_DEVICE)  // the driver takes a copy before it returns
        work.staged = memcpy(malloc(bytes + 1), from, bytes);
    CHECK(submit(work));
    if (wait || (pageable && kind == DEVICE_TO_HOST)) run_until(stream, 0);
    return sticky;
}
int cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
    BEGIN;
    Stream* stream = &legacy;
    CHECK(usable(&stream));
    CHECK(unsafe_call());
    return copy(to, from, bytes, kind, stream, 1);
}
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, Stream* stream) {
    BEGIN;
    CHECK(usable(&stream));
    return copy(to, from, bytes, kind, stream, 0);
}
static int fill(void* to, int value, size_t bytes, Stream* stream) {
    if (bytes && standin_extent(to) < bytes) return INVALID_VALUE;
    return submit((Work){.kind = FILL, .stream = stream, .to = to, .value = value, .bytes = bytes});
}
int cudaMemset(void* to, int value, size_t bytes) {
    BEGIN;
    Stream* stream = &legacy;
    CHECK(usable(&stream));
    return fill(to, value, bytes, stream);
}
int cudaMemsetAsync(void* to, int value, size_t bytes, Stream* stream) {
    BEGIN;
    CHECK(usable(&stream));
    return fill(to, value, bytes, stream);
}

// ---- the runtime: streams and events -----------------------------------------------------------

int cudaStreamCreateWithPriority(Stream** made, unsigned flags, int priority) {
    BEGIN;
    CHECK(unsafe_call());
    *made = calloc(1, sizeof **made);
    (*made)->flags = flags;
    (*made)->priority = priority;
    (*made)->next = streams->next;
    streams->next = *made;
    return SUCCESS;
}
int cudaStreamCreateWithFlags(Stream** made, unsigned flags) {
    return cudaStreamCreateWithPriority(made, flags, 0);
}
int cudaStreamCreate(Stream** made) { return cudaStreamCreateWithPriority(made, 0, 0); }
int cudaStreamDestroy(Stream* stream) {
    BEGIN;
    if (!stream || stream == &legacy || stream->dead) return INVALID_HANDLE;
    if (stream->capture) invalidate(stream->capture);
    stream->dead = 1;  // its work is still due, and a handle that is used again must fail
    return SUCCESS;
}
int cudaStreamGetFlags(Stream* stream, unsigned* flags) {
    BEGIN;
    CHECK(named(&stream));
    *flags = stream->flags;
    return SUCCESS;
}
int cudaStreamGetPriority(Stream* stream, int* priority) {
    BEGIN;
    CHECK(named(&stream));
    *priority = stream->priority;
    return SUCCESS;
}
static int may_wait(Stream* stream) {
    if (stream->capture) {
        invalidate(stream->capture);
        return CAPTURE_UNSUPPORTED;
    }
    return unsafe_call();
}
int cudaStreamSynchronize(Stream* stream) {
    BEGIN;
    CHECK(usable(&stream));
    CHECK(may_wait(stream));
    run_until(stream, 0);
    return sticky;
}
int cudaStreamQuery(Stream* stream) {
    BEGIN;
    CHECK(usable(&stream));
    CHECK(may_wait(stream));
    if (stream->first) step(stream);  // whoever asks again and again gets there
    return sticky ? sticky : stream->first ? NOT_READY : SUCCESS;
}
int cudaDeviceSynchronize(void) {
    BEGIN;
    CHECK(waits_for_all());
    run_all();
    return sticky;
}
int cudaEventCreateWithFlags(Event** made, unsigned flags) {
    BEGIN;
    *made = calloc(1, sizeof **made);
    (*made)->timed = !(flags & 2);
    return SUCCESS;
}
int cudaEventCreate(Event** made) { return cudaEventCreateWithFlags(made, 0); }
int cudaEventDestroy(Event* event) {
    BEGIN;
    if (event->dead) return INVALID_HANDLE;
    event->dead = 1;  // it stays: recording it may still be due
    release(event->work);
    forget(&event->tips);
    return SUCCESS;
}
int cudaEventRecord(Event* event, Stream* stream) {
    BEGIN;
    CHECK(usable(&stream));
    if (event->dead) return INVALID_HANDLE;
    release(event->work);
    event->work = 0;
    event->capture = stream->capture;
    forget(&event->tips);
    if (stream->capture) {  // it marks a place in the graph, and is no work
        join(&event->tips, stream->tips);
        return SUCCESS;
    }
    CHECK(submit((Work){.kind = RECORD, .stream = stream, .event = event}));
    event->work = hold(stream->last);  // none: it has run
    return SUCCESS;
}
static int pending(Event* event) { return event->work && !event->work->done; }
static int going_on(Capture* capture) {
    for (Capture* c = captures; c; c = c->next) if (c == capture) return 1;
    return 0;
}
static int of_capture(Event* event) {  // to wait for such an event never makes sense
    if (event->dead) return INVALID_HANDLE;
    if (!event->capture) return SUCCESS;
    invalidate(event->capture);
    return CAPTURED_EVENT;
}
int cudaEventSynchronize(Event* event) {
    BEGIN;
    CHECK(of_capture(event));
    CHECK(unsafe_call());
    if (pending(event)) run_until(event->work->stream, event->work);
    return sticky;
}
int cudaEventQuery(Event* event) {
    BEGIN;
    CHECK(of_capture(event));
    CHECK(unsafe_call());
    if (pending(event)) step(event->work->stream);
    return sticky ? sticky : pending(event) ? NOT_READY : SUCCESS;
}
int cudaEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    BEGIN;
    if (!from->timed || !to->timed || !from->at) return INVALID_HANDLE;
    if (pending(from) || pending(to)) return NOT_READY;
    *milliseconds = (float)(to->at - from->at) + 1e-4f;
    return SUCCESS;
}
int cudaStreamWaitEvent(Stream* stream, Event* event, unsigned flags) {
    BEGIN;
    CHECK(usable(&stream));
    (void)flags;
    if (event->dead) return INVALID_HANDLE;
    if (event->capture && !going_on(event->capture)) return CAPTURED_EVENT;
    if (stream->capture && stream->capture != event->capture) {
        invalidate(stream->capture);  // a graph cannot wait for work outside of it
        return event->capture ? CAPTURE_MERGE : CAPTURE_ISOLATION;
    }
    if (event->capture) {  // the stream joins the capture, or takes a branch back
        if (event->capture->invalid) return CAPTURE_INVALIDATED;
        stream->capture = event->capture;
        join(&stream->tips, event->tips);
        return SUCCESS;
    }
    wait_for(stream, event->work);
    return SUCCESS;
}
int cudaLaunchHostFunc(Stream* stream, void (*call)(void*), void* data) {
    BEGIN;
    CHECK(usable(&stream));
    return submit((Work){.kind = HOST, .stream = stream, .call = call, .data = data});
}

// ---- the runtime: graphs -----------------------------------------------------------------------

int cudaStreamBeginCapture(Stream* stream, int mode) {
    BEGIN;
    CHECK(usable(&stream));
    if (stream == &legacy) return CAPTURE_UNSUPPORTED;
    if (stream->capture) return INVALID_VALUE;
    Capture* made = calloc(1, sizeof *made);
    *made = (Capture){.mode = mode, .origin = stream, .thread = pthread_self(), .next = captures};
    made->graph = calloc(1, sizeof *made->graph);
    captures = stream->capture = made;
    return SUCCESS;
}
static void mark(Nodes nodes) {
    for (int i = 0; i < nodes.count; i++)
        if (!nodes.at[i]->done) nodes.at[i]->done = 1, mark(nodes.at[i]->needs);
}
int cudaStreamEndCapture(Stream* stream, Graph** graph) {
    BEGIN;
    *graph = 0;
    Capture* capture = stream ? stream->capture : 0;
    if (!capture || capture->origin != stream) return CAPTURE_UNMATCHED;
    if (capture->mode != RELAXED && !pthread_equal(capture->thread, pthread_self()))
        return WRONG_THREAD;
    int unjoined = 0;
    mark(stream->tips);
    for (Work* w = capture->graph->first; w; w = w->next) unjoined |= !w->done;
    for (Stream* s = streams; s; s = s->next)
        if (s->capture == capture) {
            s->capture = 0;
            forget(&s->tips);
        }
    for (Capture** place = &captures; *place; place = &(*place)->next)
        if (*place == capture) { *place = capture->next; break; }
    // the record itself stays: events that were recorded in it still point to it
    if (capture->invalid) return CAPTURE_INVALIDATED;
    if (unjoined) return CAPTURE_UNJOINED;
    *graph = capture->graph;
    return SUCCESS;
}
int cudaStreamIsCapturing(Stream* stream, int* status) {
    BEGIN;
    CHECK(named(&stream));
    CHECK(implicit(stream, 0));
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}
int cudaGraphInstantiate(Graph** made, Graph* graph, unsigned long long flags) {
    BEGIN;
    CHECK(unsafe_call());
    *made = memcpy(malloc(sizeof *graph), graph, sizeof *graph);
    (void)flags;
    return SUCCESS;
}
int cudaGraphLaunch(Graph* graph, Stream* stream) {
    BEGIN;
    CHECK(usable(&stream));
    Work work = {.kind = GRAPH, .stream = stream, .graph = graph};
    if (stream->capture) return submit(work);
    wait_for(stream, graph->launched);
    CHECK(submit(work));
    release(graph->launched);
    graph->launched = hold(stream->last);  // none: it has run
    return SUCCESS;
}
int cudaGraphUpload(Graph* graph, Stream* stream) {
    BEGIN;
    (void)graph;
    return usable(&stream);
}
int cudaGraphDestroy(Graph* graph) {  // it stays: queued launches of it may still be due
    BEGIN;
    (void)graph;
    return SUCCESS;
}
int cudaGraphExecDestroy(Graph* graph) { return cudaGraphDestroy(graph); }
int cudaGraphGetNodes(Graph* graph, void* nodes, size_t* number) {
    BEGIN;
    if (nodes) return NOT_SUPPORTED;
    *number = graph->count;
    return SUCCESS;
}

// ---- the runtime: the device -------------------------------------------------------------------

static const char device_name[] = "Stand-in H100";
static int attribute(int which) {
    switch (which) {
    case 1: return 1024;      // threads in a block
    case 2: case 3: return 1024;
    case 4: return 64;
    case 5: return 2147483647;
    case 6: case 7: return 65535;
    case 8: return 49152;     // shared memory of a block
    case 10: return 32;       // threads in a warp
    case 12: return 65536;    // registers of a block
    case 13: return 1980000;  // kHz
    case 16: return 132;      // multiprocessors
    case 38: return 50 << 20; // L2 cache
    case 39: return 2048;     // threads of a multiprocessor
    case 41: return 1;        // one address space
    case 75: return 9;        // compute capability
    case 76: return 0;
    case 81: return 233472;   // shared memory of a multiprocessor
    case 82: return 65536;
    case 97: return 232448;   // shared memory of a block that asks for it
    default: return 0;
    }
}
int cudaGetDevice(int* device) { BEGIN; *device = 0; return SUCCESS; }
int cudaSetDevice(int device) { BEGIN; return device ? INVALID_DEVICE : SUCCESS; }
int cudaGetDeviceCount(int* devices) { BEGIN; *devices = 1; return SUCCESS; }
int cudaDriverGetVersion(int* version) { BEGIN; *version = 13000; return SUCCESS; }
int cudaRuntimeGetVersion(int* version) { BEGIN; *version = 13000; return SUCCESS; }
int cudaDeviceCanAccessPeer(int* can, int a, int b) {
    BEGIN;
    (void)a, (void)b;
    *can = 0;
    return SUCCESS;
}
int cudaDeviceGetAttribute(int* value, int which, int device) {
    BEGIN;
    *value = attribute(which);
    return device ? INVALID_DEVICE : SUCCESS;
}
int cudaGetLastError(void) { ENTER; return sticky; }
int cudaPeekAtLastError(void) { ENTER; return sticky; }
const char* cudaGetErrorName(int error) { (void)error; return "cudaError"; }
static const char* text(int error) {
    switch (error) {
    case INVALID_VALUE: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case INVALID_HANDLE: return "invalid resource handle";
    case NOT_READY: return "device not ready";
    case ILLEGAL_ADDRESS: return "an illegal memory access was encountered";
    case NOT_SUPPORTED: return "operation not supported";
    case CAPTURE_UNSUPPORTED: return "operation not permitted when stream is capturing";
    case CAPTURE_INVALIDATED: return "operation failed due to a previous error during capture";
    case CAPTURE_MERGE: return "operation would merge two independent captures";
    case CAPTURE_UNJOINED: return "capture ended with unjoined work";
    case CAPTURE_ISOLATION: return "dependency created on uncaptured work in another stream";
    case CAPTURED_EVENT: return "operation not permitted on an event last recorded in a capture";
    case CAPTURE_IMPLICIT:
        return "operation would make the legacy stream depend on a capturing blocking stream";
    default: return "error";
    }
}
const char* cudaGetErrorString(int error) { return text(error); }

struct Properties {  // cudaDeviceProp of CUDA 13
    char name[256], uuid[16], luid[8];
    unsigned node_mask;
    size_t memory, shared;
    int registers, warp;
    size_t pitch;
    int threads, block[3], grid[3];
    size_t constants;
    int major, minor;
    size_t texture[2];
    int processors, integrated, maps_host, textures[39];
    size_t surface;
    int concurrent, ecc, bus[3], tcc, engines, unified, bus_width, l2, persisting, resident;
    int priorities, l1[2];
    size_t shared_of_processor;
    int registers_of_processor, managed, board[2], atomics, pageable[2], preemption, host_pointer;
    int cooperative;
    size_t shared_opt_in;
    int rest[96];
};
int cudaGetDeviceProperties(struct Properties* p, int device) {
    BEGIN;
    if (device) return INVALID_DEVICE;
    memset(p, 0, offsetof(struct Properties, rest));
    strcpy(p->name, device_name);
    p->memory = ARENA, p->shared = attribute(8), p->registers = attribute(12), p->warp = 32;
    p->threads = 1024, p->block[0] = p->block[1] = 1024, p->block[2] = 64;
    p->grid[0] = attribute(5), p->grid[1] = p->grid[2] = 65535;
    p->major = 9, p->processors = 132, p->l2 = attribute(38), p->resident = 2048;
    p->shared_of_processor = attribute(81), p->registers_of_processor = 65536;
    p->shared_opt_in = attribute(97), p->unified = 1;
    return SUCCESS;
}

// ---- the driver --------------------------------------------------------------------------------

static char context[64];
int cuInit(unsigned flags) { (void)flags; return SUCCESS; }
int cuDriverGetVersion(int* version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int* devices) { *devices = 1; return SUCCESS; }
int cuDeviceGet(int* device, int number) {
    *device = number;
    return number ? INVALID_DEVICE : SUCCESS;
}
int cuDeviceGetName(char* name, int bytes, int device) {
    (void)device;
    snprintf(name, bytes, "%s", device_name);
    return SUCCESS;
}
int cuDeviceGetAttribute(int* value, int which, int device) {
    (void)device;
    *value = attribute(which);
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** made, int device) {
    (void)device;
    *made = context;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return SUCCESS; }
int cuCtxGetCurrent(void** current) { ENTER; *current = context; return SUCCESS; }
int cuCtxSetCurrent(void* current) { ENTER; (void)current; return SUCCESS; }
int cuCtxGetDevice(int* device) { ENTER; *device = 0; return SUCCESS; }
int cuGetErrorName(int error, const char** name) {
    (void)error;
    *name = "CUDA_ERROR";
    return SUCCESS;
}
int cuGetErrorString(int error, const char** said) { *said = text(error); return SUCCESS; }

static void* last_module;
void* standin_last_module(void) { return last_module; }
int cuModuleLoadData(void** module, const void* image) {
    BEGIN;
    CHECK(unsafe_call());
    (void)image;
    *module = last_module = malloc(1);
    return SUCCESS;
}
int cuModuleUnload(void* module) {
    BEGIN;
    (void)module;  // its functions may be queued
    return SUCCESS;
}
int cuModuleGetFunction(Function** made, void* module, const char* name) {
    BEGIN;
    *made = calloc(1, sizeof **made);
    (*made)->module = module;
    snprintf((*made)->name, sizeof (*made)->name, "%s", name);
    return SUCCESS;
}
const char* standin_name(Function* function) { return function->name; }
void* standin_module(Function* function) { return function->module; }
void standin_parameter(Function* function, size_t offset, size_t size) {
    int n = function->parameter_count++;
    function->sizes = realloc(function->sizes, (n + 1) * sizeof *function->sizes);
    function->offsets = realloc(function->offsets, (n + 1) * sizeof *function->offsets);
    function->offsets[n] = offset, function->sizes[n] = size;
    if (offset + size > function->bytes) function->bytes = offset + size;
}
int cuFuncGetAttribute(int* value, int which, Function* function) {
    BEGIN;
    *value = which == 8 ? function->dynamic_shared : which == 0 ? 1024 : 0;
    return SUCCESS;
}
int cuFuncSetAttribute(Function* function, int which, int value) {
    BEGIN;
    if (which == 8 && (value < 0 || value > attribute(97))) return INVALID_VALUE;
    if (which == 8) function->dynamic_shared = value;
    return SUCCESS;
}
int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                   unsigned by, unsigned bz, unsigned shared, Stream* stream, void** parameters,
                   void** extra) {
    BEGIN;
    CHECK(usable(&stream));
    int most = function->dynamic_shared > 49152 ? function->dynamic_shared : 49152;
    if (!gx || !gy || !gz || !bx || !by || !bz || bx > 1024 || by > 1024 || bz > 64 ||
        (size_t)bx * by * bz > 1024 || gy > 65535 || gz > 65535 || gx > 2147483647u ||
        shared > (unsigned)most || extra) return INVALID_VALUE;
    Work work = {.kind = LAUNCH, .stream = stream, .function = function, .grid = {gx, gy, gz},
                 .block = {bx, by, bz}, .shared = shared};
    if (launcher) {
        if (!function->described) {
            if (describer(function)) return INVALID_VALUE;
            function->described = 1;
        }
        work.parameters = calloc(1, function->bytes + 16);
        for (int i = 0; i < function->parameter_count; i++)
            memcpy(work.parameters + function->offsets[i], parameters[i], function->sizes[i]);
    }
    return submit(work);
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* resident, Function* function, int threads,
                                                size_t bytes) {
    BEGIN;
    (void)function, (void)threads, (void)bytes;
    *resident = 1;
    return SUCCESS;
}
int cuGetExportTable(const void** table, const void* which) {  // NVRTC asks whether there is one
    (void)which;
    *table = 0;
    return NOT_FOUND;
}
