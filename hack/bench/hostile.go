package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"batchtask.dev/operator/hack/localenv"
)

// A hostile tenant beside one that does what tenants do. The case has two phases of one
// length. In both the same generator makes the same requests at the same times and the
// victim, a namespace of its own, does the same; in the first they are harmless, in the
// second each is the hostile one of its kind, all at once (see hostileTenant.acts). What the
// victim waits for is compared: its tasks, new Products, shadows and calls.
//
// The victim, the hostile tenant and all servers share the machine, and the hostile tenant's
// requests cost its own clients and the API server more too, which is within the comparison.
const (
	// hostileMemory is what the Go runtime makes of the memory limit of the manager's
	// container, 1 GiB.
	hostileMemory = "921MiB"
	// hostileRest lets what the harmless phase has begun come to its end.
	hostileRest = 5 * time.Second
)

// asShipped changes nothing: the service is started, with its defaults.
var asShipped = []string{"--zap-log-level=info"}

// hostileCase is how long each phase is, and how many finished tasks one hostile account
// lists.
type hostileCase struct {
	phase    time.Duration
	finished int
	broker   *brokerFront
}

func newHostileCase(phase time.Duration, finished int) *hostileCase {
	return &hostileCase{phase: phase, finished: finished, broker: &brokerFront{}}
}

// hostilePhase is what one phase gave.
type hostilePhase struct {
	lived    *lived
	requests int
	peaks    map[string]reading
}

func (c *hostileCase) measure(ctx context.Context, env *localenv.Env) ([]figure, error) {
	ctx, end := context.WithCancel(ctx)
	defer end() // of all servers
	commands := []string{"manager", "shadow", "shim"}
	processes, err := findResident(env.Program, commands...)
	if err != nil {
		return nil, err
	}
	db, err := openDatabase(ctx, env)
	if err != nil {
		return nil, err
	}
	defer db.close(ctx)
	progress("making the victim and the hostile tenant")
	victim, closeAll, err := newVictim(ctx, env, db)
	if err != nil {
		return nil, fmt.Errorf("make the victim: %w", err)
	}
	defer closeAll()
	tenant, err := newHostileTenant(ctx, env, db, c)
	if err != nil {
		return nil, fmt.Errorf("make the hostile tenant: %w", err)
	}
	defer tenant.close(ctx)

	run := func(hostile bool) (*hostilePhase, error) {
		if err := tenant.turn(ctx, hostile); err != nil {
			return nil, err
		}
		if err := processes.forget(); err != nil {
			return nil, err
		}
		phase, stop := context.WithTimeout(ctx, c.phase)
		defer stop()
		requests := make(chan int, 1)
		go func() { requests <- tenant.run(phase, hostile) }()
		p := &hostilePhase{lived: victim.live(phase), peaks: map[string]reading{}}
		p.requests = <-requests
		for _, command := range commands {
			p.peaks[command] = processes.peak(command)
		}
		return p, ctx.Err()
	}
	progress(fmt.Sprintf("%v of harmless requests", c.phase))
	harmless, err := run(false)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, hostileRest); err != nil {
		return nil, err
	}
	progress(fmt.Sprintf("%v of hostile requests: %s", c.phase, strings.Join(tenant.names(), "; ")))
	hostile, err := run(true)
	if err != nil {
		return nil, err
	}
	progress(fmt.Sprintf("the broker swallowed %d messages and ended %d connections", c.broker.swallowed.Load(), c.broker.ended.Load()))
	return c.figures(victim, harmless, hostile, processes), nil
}

func (c *hostileCase) figures(v *victim, harmless, hostile *hostilePhase, processes resident) []figure {
	var figures []figure
	for _, op := range v.operations() {
		for _, percent := range []int{50, 99} {
			f := newFigure(fmt.Sprintf("%s, beside a hostile tenant, p%d", op.name, percent), "ms", hostile.lived.took[op.name].percentile(percent)).
				beside(harmless.lived.alone(op.name, percent), "the same beside as many harmless requests of the same kinds")
			if percent == 99 {
				f = f.aiming(&aim{ofRatio, atMost, 3})
			}
			figures = append(figures, f)
		}
	}
	succeeded := func(l *lived) reading {
		failed, all := l.failures()
		return reading{value: 100 * float64(all-failed) / float64(all)}
	}
	peak := func(command string, a *aim) figure {
		return newFigure(command+", peak memory beside a hostile tenant", "MiB", hostile.peaks[command]).
			beside(harmless.peaks[command], "the same beside as many harmless requests").aiming(a)
	}
	limit := &aim{ofValue, atMost, 1024}
	return append(figures,
		newFigure("the victim's operations that succeeded beside a hostile tenant", "%", succeeded(hostile.lived)).
			beside(succeeded(harmless.lived), "the same beside as many harmless requests").aiming(&aim{ofRatio, atLeast, 1}),
		peak("manager", limit), peak("shadow", nil), peak("shim", nil),
		newFigure("manager, shadow service and HTTP front: processes that have not ended", "processes", reading{value: float64(processes.alive())}).
			aiming(&aim{ofValue, atLeast, 3}),
		newFigure("requests of the hostile tenant", "requests", reading{value: float64(hostile.requests)}).
			beside(reading{value: float64(harmless.requests)}, "its harmless requests").aiming(&aim{ofRatio, atLeast, 0.9}),
	)
}
