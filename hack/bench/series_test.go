package main

import (
	"errors"
	"math"
	"strings"
	"testing"
)

func seriesOf(values ...float64) *series {
	s := &series{}
	for _, v := range values {
		s.add(v, nil)
	}
	return s
}

func TestPercentile(t *testing.T) {
	hundred := &series{}
	for i := 100; i > 0; i-- {
		hundred.add(float64(i), nil)
	}
	for _, tc := range []struct {
		s       *series
		percent int
		want    float64
	}{
		{seriesOf(7), 50, 7},
		{seriesOf(7), 99, 7},
		{seriesOf(3, 1, 2), 50, 2},
		{seriesOf(9, 1, 5, 3, 7), 50, 5},
		{hundred, 50, 50},
		{hundred, 99, 99},
	} {
		if got := tc.s.percentile(tc.percent); got.err != nil || got.value != tc.want {
			t.Errorf("p%d of %v is %v, %v, want %v", tc.percent, tc.s.values, got.value, got.err, tc.want)
		}
	}
}

// One round that failed, or that gave what no rate and no time can be, leaves no result,
// whatever the others were.
func TestSeriesWithoutResult(t *testing.T) {
	broken := errors.New("connection reset")
	for name, round := range map[string]func(*series){
		"failed":              func(s *series) { s.add(0, broken) },
		"failed with a value": func(s *series) { s.add(5000, broken) },
		"0":                   func(s *series) { s.add(0, nil) },
		"negative":            func(s *series) { s.add(-1, nil) },
		"NaN":                 func(s *series) { s.add(math.NaN(), nil) },
		"Inf":                 func(s *series) { s.add(math.Inf(1), nil) },
		"-Inf":                func(s *series) { s.add(math.Inf(-1), nil) },
	} {
		for at := range 3 {
			s := &series{}
			for i := range 3 {
				if i == at {
					round(s)
					continue
				}
				s.add(100, nil)
			}
			if got := s.median(); got.err == nil {
				t.Errorf("round %d %s: the median is %v, want none", at, name, got.value)
			}
			if at < 2 {
				continue
			}
			if got := s.last(); got != "not measured" {
				t.Errorf("a last round %s is shown as %q", name, got)
			}
		}
	}
	if got := (&series{}).median(); got.err == nil || !strings.Contains(got.err.Error(), "no round") {
		t.Errorf("no round at all: %v, %v", got.value, got.err)
	}
}
