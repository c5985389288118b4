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
}

// readScale chooses by the environment's BENCH.
func readScale() (scale, error) {
	usual := scale{
		publishMany: true, publishRounds: 5, latencies: 100,
		smallNamespaces: 200, smallRounds: 3,
		frontRounds: 5, frontPairs: 200,
		shadowTrips: 500, shadowStep: 2 * time.Second,
		postgresDevices: 200_000,
		many:            manyCase{products: 2_000, finished: 10_000, running: 500, devices: 5_000},
	}
	switch size := os.Getenv("BENCH"); size {
	case "quick":
		return scale{
			publishRounds: 3, latencies: 20,
			smallNamespaces: 50, smallRounds: 1,
			frontRounds: 1, frontPairs: 40,
			shadowTrips: 200, shadowStep: 400 * time.Millisecond,
			postgresDevices: 50_000,
			many:            manyCase{products: 500, finished: 2_000, running: 100, devices: 2_000},
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
