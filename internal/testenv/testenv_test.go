package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

func TestMain(m *testing.M) { Main(m) }

func TestStart(t *testing.T) {
	env := Start(t)
	if again := Start(t); again != env {
		t.Error("a second Start gave another environment")
	}
	first, second := env.Namespace(t), env.Namespace(t)
	if first == second {
		t.Errorf("two namespaces named %q", first)
	}
	for _, list := range []client.ObjectList{&v1alpha1.BatchTaskList{}, &v1alpha1.ProductList{}, &v1alpha1.DeviceList{}, &v1alpha1.TaskQuotaList{}} {
		if err := env.Client.List(t.Context(), list, client.InNamespace(first)); err != nil {
			t.Errorf("listing %T: %v", list, err)
		}
	}
}

func TestAssets(t *testing.T) {
	root := t.TempDir()
	build := func(name string, age time.Duration, binaries ...string) string {
		t.Helper()
		directory := filepath.Join(root, "bin", "controlplane", name)
		if err := os.MkdirAll(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, binary := range binaries {
			file := filepath.Join(directory, binary)
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			built := time.Unix(1_000_000, 0).Add(-age)
			if err := os.Chtimes(file, built, built); err != nil {
				t.Fatal(err)
			}
		}
		return directory
	}

	if _, err := assets(root, ""); err == nil || !strings.Contains(err.Error(), "run `make controlplane`") {
		t.Errorf("with nothing built: error %v, want the advice to run `make controlplane`", err)
	}
	build("z-incomplete", 0, "etcd", "kube-apiserver")
	if _, err := assets(root, ""); err == nil {
		t.Error("an incomplete build was taken")
	}
	build("z-old", time.Hour, "etcd", "kube-apiserver", "kubectl")
	want := build("a-new", time.Minute, "etcd", "kube-apiserver", "kubectl")
	if got, err := assets(root, ""); err != nil || got != want {
		t.Errorf("got %q (error %v), want the newest, %q", got, err, want)
	}
	if got, err := assets(root, "/elsewhere"); err != nil || got != "/elsewhere" {
		t.Errorf("got %q (error %v), want the override", got, err)
	}
}
