/*
counters.cu: where counted mode notes what a thread does (counting.py says what). Python takes the
notes when the log is full and when the launch has ended.
*/

extern "C" __device__ void sim_log_full(u64 block);

extern "C" __device__ void sim_log(u64 block, u32 thread, u32 place, u64 key, u64 address) {
    Block* b = (Block*)block;
    Log* log = (Log*)b->log;
    if (log->used == log->size) sim_log_full(block);
    Note* note = (Note*)log->notes + log->used++;
    note->address = address;
    note->key = key;
    note->block = b->index;
    note->place = place;
    note->thread = thread;
}
