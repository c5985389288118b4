package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// series is what the rounds of one measurement gave. Where one of them failed there is
// no result: the others may be those that a fault made fast.
type series struct {
	values []float64
	err    error // of the first that failed
}

// add adds a round: what it gave, or why it gave nothing.
func (s *series) add(value float64, err error) {
	if err == nil {
		err = checkMeasured(value)
	}
	s.values = append(s.values, value)
	if s.err == nil {
		s.err = err
	}
}

// percentile is the least value that so many percent of all do not exceed.
func (s *series) percentile(percent int) reading {
	if s.err != nil {
		return reading{err: s.err}
	}
	if len(s.values) == 0 {
		return reading{err: errors.New("no round was measured")}
	}
	sorted := slices.Sorted(slices.Values(s.values))
	return reading{value: sorted[max(1, (len(sorted)*percent+99)/100)-1]}
}

func (s *series) median() reading { return s.percentile(50) }

// last describes the last round.
func (s *series) last() string {
	if s.err != nil || len(s.values) == 0 {
		return "not measured"
	}
	return fmt.Sprintf("%.0f/s", s.values[len(s.values)-1])
}

// reading is a number, or why there is none.
type reading struct {
	value float64
	err   error
}

// checkMeasured refuses what cannot be a rate, a time or a size of something that has
// happened.
func checkMeasured(value float64) error {
	if math.IsNaN(value) || math.IsInf(value, 0) || value <= 0 {
		return fmt.Errorf("%v cannot be what was measured: must be a number above 0", value)
	}
	return nil
}
