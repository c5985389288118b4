package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// startPostgres returns the URL of an empty database; "" where PostgreSQL is not
// installed, unless the environment says CI=true.
func startPostgres(t *testing.T) string {
	t.Helper()
	if _, err := localenv.FindPostgres(); err != nil && os.Getenv("CI") != "true" {
		return ""
	}
	return pgtest.Start(t).Database(t)
}

// checkDatabase runs a task over the product whose devices are in the database, which
// they do and report.
func checkDatabase(t *testing.T, c client.Client, namespace string) {
	t.Helper()
	task := &v1alpha1.BatchTask{
		ObjectMeta: metav1.ObjectMeta{Name: "open-meters", Namespace: namespace},
		Spec: v1alpha1.BatchTaskSpec{
			TaskType: v1alpha1.TaskTypeUpdateShadow, ProductID: databaseProductID, DeviceNameFilter: "^meter",
			Tasks:                     v1alpha1.TaskDetails{UpdateShadowTask: &v1alpha1.UpdateShadowTask{Desired: openState}},
			MaxExecutionTimeInSeconds: 3600, TTLSecondsAfterFinished: ptr.To[int32](3600),
		},
	}
	if err := c.Create(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.DeviceCounts{Matched: databaseDevices, Succeeded: databaseDevices, Acknowledged: databaseDevices}
	for deadline := time.Now().Add(waitFor); task.Status.Counts() != want; <-time.After(50 * time.Millisecond) {
		err := c.Get(t.Context(), client.ObjectKeyFromObject(task), task)
		if time.Now().After(deadline) {
			t.Fatalf("task %s: %+v, error %v", task.Name, task.Status, err)
		}
	}
}

// schemas lists those that an environment has made in a database, and not removed.
func schemas(t *testing.T, database string) (names []string) {
	t.Helper()
	if database == "" {
		return nil
	}
	rows, err := pgtest.Connect(t, database).Query(t.Context(), "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'batchtask%'")
	if err != nil {
		t.Fatal(err)
	}
	if names, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		t.Fatal(err)
	}
	return names
}

// A database that cannot be used is told of before anything else is started.
func TestDevWithoutItsDatabase(t *testing.T) {
	for name, test := range map[string]struct{ url, want string }{
		"nobody there": {"postgres://me:hunter2@127.0.0.1:1/devices", "the database of DATABASE_URL cannot be reached: "},
		"no URL":       {"host=127.0.0.1 password=hunter2", "DATABASE_URL is not a URL such as postgres://"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := prepare(t, t.TempDir(), "dev", "--broker=embedded")
			cmd.Env = append(cmd.Env, "DATABASE_URL="+test.url)
			var output, complaint bytes.Buffer
			cmd.Stdout, cmd.Stderr = &output, &complaint
			if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("%v, want exit status 1", err)
			}
			if text := complaint.String(); !strings.Contains(text, test.want) || strings.Contains(text, "hunter2") {
				t.Errorf("it complains %q, want %q", text, test.want)
			}
			if strings.Contains(output.String(), "control plane") {
				t.Errorf("it has started a control plane:\n%s", output.String())
			}
		})
	}
}
