package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/fleet"
)

// The shadow service: devices that get their shadows and report to them, QoS 0 as
// device libraries do, against the broker alone, which carries the same messages to
// another client and back. Each device waits for its answer before it sends the next
// message, so as many are on their way as devices are at work, and one that is not
// answered is lost.
const (
	shadowDevices = 256
	echoIs        = "the broker alone, between two clients"
)

// shadowFlags let each device send as fast as it is answered.
var shadowFlags = []string{"--device-rate=100000", "--device-burst=100000"}

// shadowCase is the service over one store.
type shadowCase struct {
	store       string        // for people
	roundTrips  int           // of messages one at a time
	step        time.Duration // for each number of devices at work; twice that for writes
	makeDevices func(ctx context.Context, env *localenv.Env, names []string) error
}

// makeDatabaseDevices makes the product and its devices in the database.
func makeDatabaseDevices(ctx context.Context, env *localenv.Env, names []string) error {
	db, err := openDatabase(ctx, env)
	if err != nil {
		return err
	}
	defer db.close(ctx)
	if err := db.add(ctx, fleet.Product{Namespace: env.Namespace, ProductID: productID}, names); err != nil {
		return err
	}
	return makeDatabaseProduct(ctx, env)
}

func (c shadowCase) measure(ctx context.Context, env *localenv.Env) ([]figure, error) {
	names := deviceNames(shadowDevices)
	if err := c.makeDevices(ctx, env, names); err != nil {
		return nil, err
	}
	speakers, closeAll, err := connectSpeakers(env.MQTTURL, names)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	if err := awaitDevices(ctx, speakers); err != nil {
		return nil, err
	}

	echoTimes := c.times(ctx, speakers, echoes)
	getTimes := c.times(ctx, speakers, gets)
	echoRate := c.bestRate(ctx, speakers, "echo", echoes)
	getRate := c.bestRate(ctx, speakers, "get", gets)
	updateRate := c.bestRate(ctx, speakers, "update", updates)
	if err := errors.Join(getTimes.err, getRate.err, updateRate.err); err != nil {
		return nil, err
	}
	if err := checkVersions(ctx, speakers); err != nil {
		return nil, err
	}

	at := func(percent int) figure {
		return newFigure(fmt.Sprintf("get of a shadow, %s, one at a time, p%d of %d", c.store, percent, c.roundTrips), "ms",
			getTimes.percentile(percent)).beside(echoTimes.percentile(percent), echoIs)
	}
	rate := func(what string, measured reading) figure {
		return newFigure(fmt.Sprintf("%s, %s, highest rate without loss", what, c.store), "messages/s", measured).beside(echoRate, echoIs)
	}
	return []figure{at(50), at(99), rate("get of a shadow", getRate), rate("update of a shadow", updateRate)}, nil
}

// awaitDevices waits until the service knows the devices.
func awaitDevices(ctx context.Context, speakers []*speaker) error {
	deadline := time.Now().Add(30 * time.Second)
	for _, s := range speakers {
		for {
			err := s.must(ctx, gets)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the shadow service does not serve: %w", err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// times sends one message after the other and returns how many milliseconds each took.
func (c shadowCase) times(ctx context.Context, speakers []*speaker, k kind) *series {
	took := &series{}
	for i := range c.roundTrips {
		started := time.Now()
		err := speakers[i%len(speakers)].must(ctx, k)
		took.add(float64(time.Since(started).Microseconds())/1000, err)
		if err != nil {
			break
		}
	}
	return took
}

// bestRate lets more and more devices work at once, until a message is lost, and
// returns the highest rate in messages a second.
func (c shadowCase) bestRate(ctx context.Context, speakers []*speaker, name string, k kind) reading {
	step, best := c.step, 0.0
	if k.writes {
		step *= 2
	}
	for atWork := 1; atWork <= len(speakers); atWork *= 4 {
		rate, err := rateOf(ctx, speakers[:atWork], k, step)
		if errors.Is(err, errLost) && best > 0 {
			progress(fmt.Sprintf("%s, %s: %d at once: %v", name, c.store, atWork, err))
			break
		}
		if err != nil {
			return reading{err: err}
		}
		progress(fmt.Sprintf("%s, %s: %d at once: %.0f/s", name, c.store, atWork, rate))
		best = max(best, rate)
	}
	return reading{value: best}
}

func rateOf(ctx context.Context, speakers []*speaker, k kind, step time.Duration) (float64, error) {
	counts := make([]int, len(speakers))
	started := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range speakers {
		group.Go(func() error {
			for time.Since(started) < step {
				if err := s.must(ctx, k); err != nil {
					return err
				}
				counts[i]++
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	return float64(total) / time.Since(started).Seconds(), nil
}

// checkVersions compares the stored shadows with what was answered: each update
// raises the version by one, so none is missing and none was carried out twice.
func checkVersions(ctx context.Context, speakers []*speaker) error {
	for _, s := range speakers {
		if err := s.must(ctx, gets); err != nil {
			return err
		}
		if s.version < s.written || s.version > s.written+s.unknown {
			return fmt.Errorf("device %s: its shadow is at version %d after %d updates that were answered and %d that were not",
				s.name, s.version, s.written, s.unknown)
		}
	}
	return nil
}
