package taskid_test

import (
	"strings"
	"testing"
	"time"

	"batchtask.dev/operator/internal/taskid"
)

func TestNew(t *testing.T) {
	// CreateTask, the example of taskId, begins with its time.
	at := time.Unix(0x5ad5aa51, 0)
	seen := map[string]bool{}
	for range 1000 {
		id := taskid.New(at)
		if !taskid.Valid(id) || !strings.HasPrefix(id, "5ad5aa51") || seen[id] {
			t.Fatalf("New gave %q; valid %v, seen before %v", id, taskid.Valid(id), seen[id])
		}
		seen[id] = true
	}
	for _, later := range []time.Duration{time.Second, time.Millisecond, 999 * time.Millisecond} {
		if early, late := taskid.New(at), taskid.New(at.Add(later)); early >= late {
			t.Errorf("%q does not sort before %q, which is %s younger", early, late, later)
		}
	}
}

func TestValid(t *testing.T) {
	for id, want := range map[string]bool{
		"5ad5aa513332ea4cb86e9ad5":   true,
		"000000000000000000000000":   true,
		"":                           false,
		"5ad5aa513332ea4cb86e9ad":    false,
		"5ad5aa513332ea4cb86e9ad55":  false,
		"5AD5AA513332EA4CB86E9AD5":   false,
		"5ad5aa513332ea4cb86e9adg":   false,
		"5ad5aa513332ea4cb86e9ad5\n": false,
	} {
		if got := taskid.Valid(id); got != want {
			t.Errorf("Valid(%q) = %v, want %v", id, got, want)
		}
	}
}
