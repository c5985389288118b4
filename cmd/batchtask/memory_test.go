package main

import "testing"

func TestMemoryLimit(t *testing.T) {
	for text, want := range map[string]int64{
		"1073741824\n": 966367620, "max\n": 0, "9223372036854771712\n": 0, "": 0, "0": 0, "-1": 0,
	} {
		if got, ok := memoryLimit(text); got != want || ok != (want > 0) {
			t.Errorf("of %q the runtime may use %d (%t), want %d", text, got, ok, want)
		}
	}
}

// A small heap is collected half as often as usual; beside a large one there are at most
// 96 MiB of garbage, or a quarter of it.
func TestCollectionPercent(t *testing.T) {
	for live, want := range map[uint64]int{
		0: 200, 1 << 20: 200, 48 << 20: 200, 96 << 20: 100, 192 << 20: 50, 1 << 30: 25, 100 << 30: 25,
	} {
		if got := collectionPercent(live); got != want {
			t.Errorf("beside %d MiB: %d, want %d", live>>20, got, want)
		}
	}
}
