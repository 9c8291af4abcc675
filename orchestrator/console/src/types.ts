// The JSON of the admin API, as far as the console shows it.

export interface List<T> {
  items: T[] | null;
  next_cursor: string;
  total: number;
}

export interface Device {
  id: string;
  device_type: string;
  serial: string;
  description: string;
  hardware_metadata: Record<string, unknown> | null;
  labels: Record<string, string> | null;
  status: string;
  health: string;
  key_type: string;
  fingerprint: string;
  last_heartbeat: string | null;
  agent_version: string;
  os: string;
  arch: string;
  uptime_s: number;
  cpu_pct: number | null;
  memory_mb: number | null;
  disk_pct: number | null;
  bundle_name: string;
  bundle_version: string;
  release: string;
  config_version: number;
  config_reported: number;
  config_outcome: string;
  created_at: string;
}

export interface Config {
  version: number;
  heartbeat_interval_s: number;
  heartbeat_timeout_s: number;
  deploy_timeout_s: number;
  log_level: string;
  updated_at: string;
  updated_by: string;
  reported_version: number;
  outcome: string;
  error: string;
}

export interface HistoryEntry {
  bundle_id: string;
  bundle_name: string;
  bundle_version: string;
  deployment_id: string;
  kind: string;
  status: string;
  error: string;
  late: boolean;
  deployed_at: string;
  duration_s: number;
}

export interface Bundle {
  id: string;
  name: string;
  version: string;
  release: string;
  checksum_sha256: string;
  size: number;
  signed_by: string;
  created_at: string;
  created_by: string;
}

export interface Deployment {
  id: string;
  kind: string;
  bundle: string;
  bundle_version: string;
  description: string;
  status: string;
  reason: string;
  selector: string;
  progress: Record<string, number> | null;
  total: number;
  deadline: string;
  created_at: string;
  created_by: string;
  started_at: string | null;
  finished_at: string | null;
}

export interface Target {
  device_id: string;
  bundle_version: string;
  state: string;
  step: string;
  error_code: string;
  error: string;
  output: string;
  bytes: number;
  previous_version: string;
  finished_at: string | null;
  duration_ms: number;
}

export interface CloudEvent {
  id: string;
  type: string;
  subject: string;
  time: string;
  data: { device_id?: string } | null;
}

export const deviceStatuses = ["online", "offline", "error", "pending", "quarantined", "revoked"];

export const deploymentStatuses = ["pending", "awaiting_approval", "in_progress", "paused", "success", "failed", "cancelled"];

export const finalDeployment = (status: string): boolean => ["success", "failed", "cancelled"].includes(status);

// The states of a target in the order of its life, as the progress bar shows
// them: the best ends first, what has not begun last.
export const targetStates = [
  "succeeded", "verifying", "installing", "downloading", "accepted", "offered", "pending",
  "rolled_back", "failed", "rejected", "timed_out", "expired", "cancelled", "superseded",
];
