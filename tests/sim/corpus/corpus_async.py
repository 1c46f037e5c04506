"""Copies that a thread waits for later (cp.async)."""

from corpus.case import Case

BEFORE = """
#define COPY(to, from) asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" \\
    :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory")
#define COMMIT asm volatile("cp.async.commit_group;" ::: "memory")
#define WAIT(n) asm volatile("cp.async.wait_group " #n ";" ::: "memory")
"""
PIPELINE = """
__shared__ float s[3][64]; const int t = threadIdx.x; float sum = 0;
COPY(&s[0][t], x + t); COMMIT;                   //!
COPY(&s[1][t], x + 64 + t); COMMIT;              //!
for (int i = 0; i < 8; ++i) {
    WAIT(@@);
    __syncthreads();
    sum += s[i % 3][63 - t];                     //!
    if (i < 6) COPY(&s[(i + 2) % 3][t], x + 64 * (i + 2) + t);    //!
    COMMIT;
}
y[t] = sum;"""

CASES = {
    "a copy that nobody waits for": Case(
        "in_flight race_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
COPY(&s[t], x + t); COMMIT;                      //!
@@
__syncthreads();
y[t] = s[63 - t];                                //!""",
        "WAIT(0);",
        "",
        before=BEFORE,
    ),
    "its own copy, not waited for": Case(
        "in_flight",
        """__shared__ float s[64]; const int t = threadIdx.x;
COPY(&s[t], x + t); COMMIT;
@@
y[t] = s[t];                                     //!""",
        "WAIT(0);",
        "",
        before=BEFORE,
    ),
    "a copy waited for, without a barrier": Case(
        "in_flight race_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
COPY(&s[t], x + t); COMMIT;                      //!
WAIT(0);
@@
y[t] = s[63 - t];                                //!""",
        "__syncthreads();",
        "",
        before=BEFORE,
    ),
    "a copy without a commit": Case(
        "in_flight race_shared",
        """__shared__ float s[64]; const int t = threadIdx.x;
COPY(&s[t], x + t); @@                           //!
WAIT(0);
__syncthreads();
y[t] = s[63 - t];                                //!""",
        "COMMIT;",
        "",
        before=BEFORE,
    ),
    "a pipeline that waits for one group too few": Case(
        "in_flight race_shared", PIPELINE, "1", "2", before=BEFORE
    ),
    "a pipeline of two stages, for three": Case(
        "in_flight race_shared",
        PIPELINE.replace("s[3]", "s[@@]").replace("% 3", "% @@").replace("WAIT(@@)", "WAIT(1)"),
        "3",
        "2",
        before=BEFORE,
    ),
}
