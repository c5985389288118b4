package main

import (
	"fmt"
	"os"
	"time"
)

// scale is how much is measured. With BENCH=quick, figures are less steady, and what a
// task costs once weighs more in them.
type scale struct {
	publishMany   bool // also 20,000 Device objects, which take minutes to make
	publishRounds int
	latencies     int // tasks, one at a time

	smallNamespaces int // with smallPerNamespace tasks in each
	smallRounds     int

	frontRounds int
	frontPairs  int

	shadowTrips int           // messages, one at a time
	shadowStep  time.Duration // for each number of devices at work; twice that for writes

	postgresDevices int // of the large run

	many manyCase

	hostilePhase time.Duration // of each of the two
	hostileTasks int           // finished ones of the account that lists them
}

// readScale chooses by the environment's BENCH, and the length of the phases of the case
// hostile by HOSTILE_FOR, if that is set.
func readScale() (scale, error) {
	size, err := scaleOf(os.Getenv("BENCH"))
	text := os.Getenv("HOSTILE_FOR")
	if err != nil || text == "" {
		return size, err
	}
	size.hostilePhase, err = time.ParseDuration(text)
	if err != nil || size.hostilePhase < time.Second {
		return scale{}, fmt.Errorf("HOSTILE_FOR is %q: must be a duration of a second or more, such as 30s", text)
	}
	return size, nil
}

func scaleOf(size string) (scale, error) {
	usual := scale{
		publishMany: true, publishRounds: 5, latencies: 100,
		smallNamespaces: 200, smallRounds: 3,
		frontRounds: 5, frontPairs: 200,
		shadowTrips: 500, shadowStep: 2 * time.Second,
		postgresDevices: 200_000,
		many:            manyCase{products: 2_000, finished: 10_000, running: 500, devices: 5_000},
		hostilePhase:    2 * time.Minute, hostileTasks: 1_000,
	}
	switch size {
	case "quick":
		return scale{
			publishRounds: 3, latencies: 20,
			smallNamespaces: 50, smallRounds: 1,
			frontRounds: 1, frontPairs: 40,
			shadowTrips: 200, shadowStep: 400 * time.Millisecond,
			postgresDevices: 50_000,
			many:            manyCase{products: 500, finished: 2_000, running: 100, devices: 2_000},
			hostilePhase:    30 * time.Second, hostileTasks: 200,
		}, nil
	case "":
		return usual, nil
	case "full":
		usual.postgresDevices = 1_000_000
		usual.many.products, usual.many.finished = 10_000, 100_000
		return usual, nil
	default:
		return scale{}, fmt.Errorf("BENCH is %q: must be quick, full or empty", size)
	}
}
