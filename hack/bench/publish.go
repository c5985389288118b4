package main

import (
	"context"
	"fmt"
	"strings"

	"batchtask.dev/operator/hack/localenv"
)

const (
	productID = "BENCH00001"
	topic     = "event"
	payload   = "close"

	writerLimitIs = "hand-written MQTT writer, window 1000, best of 1, 2 and 4 connections"
)

// publishCase is PublishMessage over a number of Device objects.
type publishCase struct {
	devices, rounds int
	flags           []string // of the manager
	aim             *aim     // for the throughput
	latencies       int      // tasks for the latency; 0 for none
}

func (c publishCase) measure(ctx context.Context, env *localenv.Env) ([]figure, error) {
	names, as := deviceNames(c.devices), strings.Join(append([]string{""}, c.flags...), " ")
	if err := makeDevices(ctx, env, names); err != nil {
		return nil, err
	}
	peak := watchMemory(ctx, env.MetricsURL)
	var tasks taskRounds
	for round := range c.rounds {
		tasks.limits.add(bestWriter(ctx, env.MQTTURL, names))
		if err := tasks.run(ctx, env, newTask(env.Namespace, fmt.Sprintf("round-%d", round), productID, ".*"), c.devices); err != nil {
			return nil, err
		}
		progress(fmt.Sprintf("%d devices: task %s, writer %s", c.devices, tasks.rates.last(), tasks.limits.last()))
	}
	throughput, processor := tasks.figures(fmt.Sprintf("PublishMessage over %d devices%s", c.devices, as), writerLimitIs, c.aim)
	figures := []figure{
		throughput, processor,
		newFigure(fmt.Sprintf("manager, peak memory at %d devices%s", c.devices, as), "MiB resident", peak()),
	}
	if c.latencies == 0 {
		return figures, nil
	}
	latencies, err := measureLatency(ctx, env, names, c.latencies)
	return append(figures, latencies...), err
}
