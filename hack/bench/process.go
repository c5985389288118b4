package main

import (
	"bufio"
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// watchMemory looks at the manager's resident memory until peak is called, which
// returns the most that was seen, in bytes.
func watchMemory(ctx context.Context, metricsURL string) (peak func() float64) {
	ctx, stop := context.WithCancel(ctx)
	var most float64
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, resident(ctx, metricsURL))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() float64 {
		stop()
		wg.Wait()
		return most
	}
}

// resident reads process_resident_memory_bytes; 0 where it cannot.
func resident(ctx context.Context, metricsURL string) float64 {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, metricsURL, http.NoBody)
	if err != nil {
		return 0
	}
	// Else the manager compresses each answer: a measurable part of its work.
	req.Header.Set("Accept-Encoding", "identity")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "process_resident_memory_bytes "); ok {
			bytes, _ := strconv.ParseFloat(value, 64)
			return bytes
		}
	}
	return 0
}
