package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
)

const (
	// memoryShare is how much of the container's limit the Go runtime may use before it
	// collects garbage more often, in percent. The rest is for what it does not count.
	memoryShare = 90
	// unlimited is what version 1 of cgroups says where there is no limit, or more.
	unlimited = 1 << 60

	// A task leaves much garbage beside a small heap: collecting it half as often saves
	// more processor time than it costs memory. Beside a large heap, of very many tasks,
	// it would cost twice that heap, so there the room for garbage is bounded.
	smallHeapPercent = 200
	garbageRoom      = 96 << 20
	leastPercent     = 25
)

// limitMemory tells the Go runtime of the container's limit, unless GOMEMLIMIT says
// something else: else the kernel would end the process for garbage.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if limit, ok := memoryLimit(string(text)); ok {
			debug.SetMemoryLimit(limit)
		}
		return
	}
}

// memoryLimit returns what the runtime may use where a control group says this.
func memoryLimit(text string) (bytes int64, ok bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64) // "max" is no number
	if err != nil || n <= 0 || n >= unlimited {
		return 0, false
	}
	return n / 100 * memoryShare, true
}

// paceCollection sets how much garbage may stand beside the heap, again and again as that
// grows and shrinks, unless GOGC says something else.
func paceCollection(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(smallHeapPercent)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		last := smallHeapPercent
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
			metrics.Read(live)
			if next := collectionPercent(live[0].Value.Uint64()); next != last {
				debug.SetGCPercent(next)
				last = next
			}
		}
	}()
}

// collectionPercent returns GOGC for a heap of so many bytes. It is a multiple of five, so
// that not every change of the heap is a change of it.
func collectionPercent(live uint64) int {
	if live == 0 {
		return smallHeapPercent
	}
	percent := min(uint64(garbageRoom)*100/live, smallHeapPercent)
	return max(int(percent/5*5), leastPercent)
}
