package schedule_test

import (
	"testing"
	"time"

	"batchtask.dev/operator/internal/schedule"
)

var created = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestStart(t *testing.T) {
	for _, tc := range []struct {
		name string
		asks int64
		want time.Time
	}{
		{"zero is now", 0, created},
		{"the past, past the webhook, is now", created.Unix() - 3600, created},
		{"this very second", created.Unix(), created},
		{"an hour ahead", created.Unix() + 3600, created.Add(time.Hour)},
		{"just a day ahead", created.Unix() + 86400, created.Add(24 * time.Hour)},
		{"a second more is clamped", created.Unix() + 86401, created.Add(24 * time.Hour)},
		{"two days ahead is clamped", created.Unix() + 2*86400, created.Add(24 * time.Hour)},
		{"the greatest value of the schema", 253402300799, created.Add(24 * time.Hour)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := schedule.Start(created, tc.asks); !got.Equal(tc.want) {
				t.Errorf("Start = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestPast(t *testing.T) {
	now := created.Add(700 * time.Millisecond)
	for _, tc := range []struct {
		name string
		asks int64
		want bool
	}{
		{"zero never is", 0, false},
		{"the second that is running", created.Unix(), false},
		{"within the skew", created.Unix() - 5, false},
		{"beyond the skew", created.Unix() - 6, true},
		{"the future", created.Unix() + 60, false},
		{"1970", 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := schedule.Past(now, tc.asks, schedule.DefaultSkew); got != tc.want {
				t.Errorf("Past = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	for _, tc := range []struct {
		max  int32
		want time.Duration
	}{
		{0, 86400 * time.Second},
		{1, time.Second},
		{86400, 86400 * time.Second},
	} {
		if got := schedule.Deadline(created, tc.max).Sub(created); got != tc.want {
			t.Errorf("Deadline(%d) is %v after the start, want %v", tc.max, got, tc.want)
		}
	}
}
