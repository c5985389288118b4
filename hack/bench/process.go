package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What the manager's metrics say of its process.
const (
	residentMetric  = "process_resident_memory_bytes"
	processorMetric = "process_cpu_seconds_total"
)

// watchMemory looks at the manager's resident memory until peak is called, which looks
// once more and returns the most that was seen, in MiB.
func watchMemory(ctx context.Context, metricsURL string) (peak func() reading) {
	watching, stop := context.WithCancel(ctx)
	var most float64
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for watching.Err() == nil {
			bytes, _ := processMetric(watching, metricsURL, residentMetric) // peak tells why
			most = max(most, bytes)
			select {
			case <-tick.C:
			case <-watching.Done():
			}
		}
	})
	return func() reading {
		stop()
		wg.Wait()
		bytes, err := processMetric(ctx, metricsURL, residentMetric)
		return reading{value: max(most, bytes) / (1 << 20), err: err}
	}
}

// processMetric reads one number from the manager's metrics.
func processMetric(ctx context.Context, metricsURL, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, metricsURL, http.NoBody)
	if err != nil {
		return 0, err
	}
	// Else the manager compresses each answer: a measurable part of its work.
	req.Header.Set("Accept-Encoding", "identity")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read the manager's metrics: %w", err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("the manager's metrics have no %s", name), lines.Err())
}
